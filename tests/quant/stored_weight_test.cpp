// `keep`: weights as the model file has them, in every GGUF type with a decoder.
#include <gtest/gtest.h>

#include <cstring>

#include "core/parallel_for.h"
#include "io/gguf_types.h"
#include "tests/quant/weight_fixture.h"
#include "tests/support/tiny_gguf.h"

namespace shardtune::quant {
namespace {

constexpr int64_t kOut = 37;
constexpr int64_t kIn = 768;

/// A weight of random blocks, loaded with `keep`, and its values as the decoder of io gives them.
struct Stored {
  Stored(const std::string& type_name, DType compute, int64_t out = kOut, int64_t in = kIn)
      : type(*io::find_gguf_type(type_name)),
        row_bytes(in / type.block_size * type.block_bytes),
        bytes(testing::random_blocks(type, out * in / type.block_size, 0.05f, 0.0f, type_name)),
        values(static_cast<size_t>(out * in)),
        unit(store.add_unit("layer")) {
    type.decode(reinterpret_cast<const std::byte*>(bytes.data()), values);
    FrozenWeightRequest request{&store, unit, "w", out, in, compute};
    request.stored = {type_name, [this](int64_t begin, int64_t end, std::byte* out) {
                        std::memcpy(out, bytes.data() + begin * row_bytes,
                                    static_cast<size_t>((end - begin) * row_bytes));
                      }};
    weight = make_frozen_weight(request, {"keep", 64, false});
  }
  void load() {
    weight->load(row_source(values, weight->in_features()));
    lease = store.acquire(unit, Pass::kForward);
  }
  Tensor dense(DType dtype) const {
    return tensor_of(values, {weight->out_features(), weight->in_features()}, dtype);
  }

  const io::GgufType& type;
  int64_t row_bytes;
  std::string bytes;
  std::vector<float> values;
  FakeStore store;
  UnitId unit;
  std::unique_ptr<FrozenWeight> weight;
  UnitLease lease;
};

bool same_bytes(const TensorView& a, const TensorView& b) {
  return a.num_bytes() == b.num_bytes() &&
         std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.num_bytes())) == 0;
}

class StoredWeight : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  std::string type() const { return std::get<0>(GetParam()); }
  DType compute() const { return std::get<1>(GetParam()); }
};

TEST_P(StoredWeight, HoldsTheBytesOfTheFile) {
  Stored stored(type(), compute());
  stored.load();
  const auto ids = stored.weight->components();
  ASSERT_EQ(ids.size(), 1u);
  const auto& held = stored.store.bytes(ids[0]);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(held.data()), held.size()), stored.bytes);
  EXPECT_EQ(stored.store.spec(ids[0]).shape.extents()[0], kOut);  // a row of blocks is never cut
}

TEST_P(StoredWeight, ProductsAreThoseOfTheDecodedWeight) {
  constexpr int64_t kTokens = 5;
  Stored stored(type(), compute());
  stored.load();
  const Tensor dense = stored.dense(compute());
  const Tensor x = tensor_of(normal_values(kTokens * kIn, 1.0f, 1), {kTokens, kIn}, compute());
  const Tensor dy = tensor_of(normal_values(kTokens * kOut, 1.0f, 2), {kTokens, kOut}, compute());
  const Tensor y({kTokens, kOut}, DType::kFloat32), y_expected({kTokens, kOut}, DType::kFloat32);
  const Tensor dx({kTokens, kIn}, DType::kFloat32), dx_expected({kTokens, kIn}, DType::kFloat32);
  kernels::gemm(x, dense, kernels::Transpose::kYes, y_expected, Accumulate::kNo);
  kernels::gemm(dy, dense, kernels::Transpose::kNo, dx_expected, Accumulate::kNo);
  const int before = num_threads();
  for (const int threads : {1, 3}) {
    set_num_threads(threads);
    stored.weight->matmul(x, y, Accumulate::kNo);
    stored.weight->matmul_transposed(dy, dx, Accumulate::kNo);
    EXPECT_TRUE(same_bytes(y, y_expected)) << threads;
    EXPECT_TRUE(same_bytes(dx, dx_expected)) << threads;
  }
  set_num_threads(before);
}

TEST_P(StoredWeight, RowsAreTheRowsOfTheFile) {
  Stored stored(type(), compute());
  stored.load();
  const std::vector<int32_t> ids = {kOut - 1, 0, 7, 7};
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Tensor dense = stored.dense(dtype);
    const Tensor all({kOut, kIn}, dtype);
    stored.weight->dequantize_rows(0, kOut, all);
    EXPECT_TRUE(same_bytes(all, dense));
    const Tensor out({std::ssize(ids), kIn}, dtype);
    stored.weight->rows(ids, out);
    for (int64_t i = 0; i < std::ssize(ids); ++i)
      EXPECT_TRUE(same_bytes(out.view().rows(i, i + 1), dense.view().rows(ids[i], ids[i] + 1)));
  }
}

const std::string kTypes[] = {"F32",  "F16",  "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
                              "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"};

INSTANTIATE_TEST_SUITE_P(All, StoredWeight,
                         ::testing::Combine(::testing::ValuesIn(kTypes),
                                            ::testing::Values(DType::kFloat32, DType::kBFloat16)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::string(name_of(std::get<1>(info.param)));
                         });

TEST(StoredWeights, EveryTypeWithADecoderIsTested) {
  for (uint32_t id = 0; id < 64; ++id) {
    if (const io::GgufType* type = io::find_gguf_type(id); type != nullptr && type->decode) {
      EXPECT_NE(std::find(std::begin(kTypes), std::end(kTypes), type->name), std::end(kTypes))
          << type->name;
    }
  }
}

// Panels of a transposed product are cut at multiples of 64 columns, inside a super-block.
TEST(StoredWeights, PanelsMayCutBlocks) {
  constexpr int64_t kTall = 9000;  // 4 MiB hold 64 columns of it in fp32
  Stored stored("Q6_K", DType::kFloat32, kTall, 512);
  stored.load();
  for (const int64_t tokens : {2, 130}) {
    const Tensor dy =
        tensor_of(normal_values(tokens * kTall, 1.0f, 3), {tokens, kTall}, DType::kFloat32);
    const Tensor dx({tokens, 512}, DType::kFloat32), expected({tokens, 512}, DType::kFloat32);
    stored.weight->matmul_transposed(dy, dx, Accumulate::kNo);
    const Tensor dense = stored.dense(DType::kFloat32);
    const kernels::BlockSource blocks = [&](const kernels::Block& block, const TensorView& out) {
      for (int64_t i = 0; i < block.num_rows; ++i)
        std::copy_n(dense.data<float>() + (block.first_row + i) * 512 + block.first_column,
                    block.num_columns, out.data<float>() + i * block.num_columns);
    };
    kernels::gemm_by_panels(dy, blocks, kernels::Transpose::kNo, expected, Accumulate::kNo);
    EXPECT_TRUE(same_bytes(dx, expected)) << tokens;
  }
}

TEST(StoredWeights, OnlyThePublisherReads) {
  Stored stored("Q4_K", DType::kFloat32);
  FakeStore store(1, 2);
  const UnitId unit = store.add_unit("layer");
  FrozenWeightRequest request{&store, unit, "w", kOut, kIn, DType::kFloat32};
  request.stored = {"Q4_K", [](int64_t, int64_t, std::byte*) { FAIL() << "read"; }};
  const auto weight = make_frozen_weight(request, {"keep", 64, false});
  weight->load([](int64_t, int64_t, float*) { FAIL() << "read"; });
  EXPECT_EQ(store.publish_order(), weight->components());
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(StoredWeights, ScalesThatAreNotFiniteAreNamed) {
  Stored stored("Q4_1", DType::kFloat32);
  const size_t at = static_cast<size_t>(5 * stored.row_bytes + 2 * 20);
  stored.bytes[at] = 0;
  stored.bytes[at + 1] = 0x7c;  // the third block of row 5 has an infinite d
  const std::string message = message_of([&] { stored.load(); });
  EXPECT_NE(message.find("weight w: expected finite values, found "), std::string::npos) << message;
  EXPECT_NE(message.find("at [5, 64]"), std::string::npos) << message;
}

TEST(StoredWeights, WhatCannotBeKeptIsRefused) {
  FakeStore store;
  const UnitId unit = store.add_unit("layer");
  const auto refused = [&](const std::string& type, int64_t in) {
    FrozenWeightRequest request{&store, unit, "m.w", 8, in, DType::kFloat32};
    if (!type.empty())
      request.stored = {type, [](int64_t, int64_t, std::byte*) {}};
    return message_of([&] { make_frozen_weight(request, {"keep", 64, false}); });
  };
  EXPECT_NE(refused("TQ1_0", 256).find("weight m.w: quantization 'keep': expected one of F32, F16"),
            std::string::npos);
  EXPECT_NE(refused("TQ1_0", 256).find("found TQ1_0"), std::string::npos);
  EXPECT_NE(refused("F64", 8).find("found F64"), std::string::npos);
  EXPECT_NE(refused("", 8).find("found no stored form"), std::string::npos);
  EXPECT_NE(
      refused("Q4_K", 128).find("expected rows of whole Q4_K blocks of 256, found rows of 128"),
      std::string::npos);
  EXPECT_EQ(store.num_parameters(), 0);
}

}  // namespace
}  // namespace shardtune::quant
