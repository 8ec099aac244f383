// Every format behind FrozenWeight: products, rows and deltas agree with the decoded weight.
#include "quant/frozen_weight.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include "core/parallel_for.h"
#include "tests/quant/weight_fixture.h"

namespace shardtune::quant {
namespace {

struct Extents {
  int64_t tokens;
  int64_t out;
  int64_t in;
};

std::string text_of(const QuantizationOptions& options, DType compute) {
  return options.method + std::to_string(options.block_size) +
         (options.double_quant ? "_double_" : "_") + std::string(name_of(compute));
}

bool same_bytes(const TensorView& a, const TensorView& b) {
  return a.num_bytes() == b.num_bytes() &&
         std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.num_bytes())) == 0;
}

using Parameter = std::tuple<QuantizationOptions, DType, Extents>;

class FrozenWeightFormats : public testing::TestWithParam<Parameter> {
 protected:
  FrozenWeightFormats() : loaded_(options(), extents().out, extents().in, compute()) {}

  const QuantizationOptions& options() const { return std::get<0>(GetParam()); }
  DType compute() const { return std::get<1>(GetParam()); }
  const Extents& extents() const { return std::get<2>(GetParam()); }
  const FrozenWeight& weight() const { return *loaded_.weight; }
  Tensor input(int64_t columns) const {
    return tensor_of(normal_values(extents().tokens * columns, 1.0f, 77),
                     {extents().tokens, columns}, compute());
  }

  LoadedWeight loaded_;
};

TEST_P(FrozenWeightFormats, ProductsAreThoseOfTheDecodedWeight) {
  const Tensor x = input(extents().in);
  const Tensor dy = input(extents().out);
  const Tensor dense = loaded_.dense(compute());
  for (const DType result : {DType::kFloat32, DType::kBFloat16}) {
    for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
      const Tensor y = Tensor::zeros({extents().tokens, extents().out}, result);
      const Tensor y_expected = Tensor::zeros({extents().tokens, extents().out}, result);
      const Tensor dx = Tensor::zeros({extents().tokens, extents().in}, result);
      const Tensor dx_expected = Tensor::zeros({extents().tokens, extents().in}, result);
      for (int repeat = 0; repeat < 2; ++repeat) {
        weight().matmul(x, y, accumulate);
        kernels::gemm(x, dense, kernels::Transpose::kYes, y_expected, accumulate);
        weight().matmul_transposed(dy, dx, accumulate);
        kernels::gemm(dy, dense, kernels::Transpose::kNo, dx_expected, accumulate);
      }
      EXPECT_TRUE(same_bytes(y, y_expected));
      EXPECT_TRUE(same_bytes(dx, dx_expected));
    }
  }
}

TEST_P(FrozenWeightFormats, ASecondTermIsAddedToTheProductOfTheDecodedWeight) {
  const Tensor x = input(extents().in), u = input(8);
  const Tensor dense = loaded_.dense(compute());
  const Tensor factor =
      tensor_of(normal_values(extents().out * 8, 1.0f, 78), {extents().out, 8}, compute());
  const Tensor y({extents().tokens, extents().out}, compute());
  const Tensor y_expected({extents().tokens, extents().out}, compute());
  weight().matmul_with_low_rank(x, {u, factor, 0.5f}, y);
  kernels::gemm_with_low_rank(x, dense, {u, factor, 0.5f}, y_expected);
  EXPECT_TRUE(same_bytes(y, y_expected));
}

TEST_P(FrozenWeightFormats, RowRangesAreProductsOfThoseRows) {
  const int64_t begin = extents().out / 3;
  const int64_t end = extents().out - extents().out / 4;
  const Tensor dense = loaded_.dense(compute());
  const TensorView part = dense.view().rows(begin, end);
  const Tensor x = input(extents().in);
  const Tensor y({extents().tokens, end - begin}, compute());
  const Tensor y_expected({extents().tokens, end - begin}, compute());
  weight().matmul_rows(x, begin, end, y, Accumulate::kNo);
  kernels::gemm(x, part, kernels::Transpose::kYes, y_expected, Accumulate::kNo);
  EXPECT_TRUE(same_bytes(y, y_expected));

  const Tensor dy = input(end - begin);
  const Tensor dx({extents().tokens, extents().in}, compute());
  const Tensor dx_expected({extents().tokens, extents().in}, compute());
  weight().matmul_rows_transposed(dy, begin, end, dx, Accumulate::kNo);
  kernels::gemm(dy, part, kernels::Transpose::kNo, dx_expected, Accumulate::kNo);
  EXPECT_TRUE(same_bytes(dx, dx_expected));
}

TEST_P(FrozenWeightFormats, RowsAreTheRowsOfTheDecodedWeight) {
  const int32_t last = static_cast<int32_t>(extents().out - 1);
  const std::vector<int32_t> ids = {last, 0, last / 2, last / 2, last};
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Tensor dense = loaded_.dense(dtype);
    const Tensor out({std::ssize(ids), extents().in}, dtype);
    weight().rows(ids, out);
    for (int64_t i = 0; i < std::ssize(ids); ++i) {
      const int64_t id = ids[static_cast<size_t>(i)];
      EXPECT_TRUE(same_bytes(out.view().rows(i, i + 1), dense.view().rows(id, id + 1))) << id;
      const Tensor one({1, extents().in}, dtype);
      weight().dequantize_rows(id, id + 1, one);
      EXPECT_TRUE(same_bytes(one, dense.view().rows(id, id + 1))) << id;
    }
  }
}

TEST_P(FrozenWeightFormats, TheDecodedWeightIsNearTheOriginal) {
  const Tensor dense = loaded_.dense(DType::kFloat32);
  float absmax = 0.0f;
  for (const float value : loaded_.values)
    absmax = std::max(absmax, std::fabs(value));
  // Half the widest step of a format as a part of absmax: 0.152 for nf4, 0.167 for fp4 (double
  // quantisation moves absmax itself by up to 1.5% of its spread), 1/254 for int8 and a few fp32
  // roundings, 2^-9 for bf16.
  const float share = options().method == "fp4"   ? 0.185f
                      : options().method == "nf4" ? 0.17f
                                                  : 0.5f / 127.0f + 4 * 0x1p-24f;
  for (size_t i = 0; i < loaded_.values.size(); ++i)
    ASSERT_LE(std::fabs(dense.data<float>()[i] - loaded_.values[i]), share * absmax) << i;
}

TEST_P(FrozenWeightFormats, DeltaIsAddedInFp32AndRoundedOnce) {
  const int64_t numel = extents().out * extents().in;
  const std::vector<float> delta = normal_values(numel, 0.01f, 5);
  const int64_t columns = extents().in;
  const DeltaSource add = [&](int64_t begin, int64_t end, float* out) {
    for (int64_t i = begin * columns; i < end * columns; ++i)
      out[i - begin * columns] += delta[static_cast<size_t>(i)];
  };
  const Tensor merged_f32 = loaded_.dense(DType::kFloat32);
  add(0, extents().out, merged_f32.data<float>());
  const std::span<const float> sums(merged_f32.data<float>(), static_cast<size_t>(numel));
  const Tensor merged = tensor_of({sums.begin(), sums.end()}, {extents().out, columns}, compute());
  const Tensor x = input(columns);
  const Tensor y({extents().tokens, extents().out}, DType::kFloat32);
  const Tensor expected({extents().tokens, extents().out}, DType::kFloat32);
  weight().matmul_with_delta(x, add, y, Accumulate::kNo);
  kernels::gemm(x, merged, kernels::Transpose::kYes, expected, Accumulate::kNo);
  EXPECT_TRUE(same_bytes(y, expected));
}

TEST_P(FrozenWeightFormats, BitsDoNotDependOnTheNumberOfThreads) {
  const Tensor x = input(extents().in);
  const Tensor dy = input(extents().out);
  const int before = num_threads();
  const auto run = [&](int threads) {
    set_num_threads(threads);
    const LoadedWeight fresh(options(), extents().out, extents().in, compute());
    Tensor y({extents().tokens, extents().out}, DType::kFloat32);
    Tensor dx({extents().tokens, extents().in}, DType::kFloat32);
    fresh.weight->matmul(x, y, Accumulate::kNo);
    fresh.weight->matmul_transposed(dy, dx, Accumulate::kNo);
    return std::pair(std::move(y), std::move(dx));
  };
  const auto expected = run(1);
  for (const int threads : {2, 3, 8}) {
    const auto got = run(threads);
    EXPECT_TRUE(same_bytes(got.first, expected.first)) << threads;
    EXPECT_TRUE(same_bytes(got.second, expected.second)) << threads;
  }
  set_num_threads(before);
}

TEST_P(FrozenWeightFormats, ProductsReturnTheirScratch) {
  const Tensor x = input(extents().in);
  const Tensor y({extents().tokens, extents().out}, compute());
  const int64_t before = BufferPool::process().bytes_in_use();
  weight().matmul(x, y, Accumulate::kNo);
  EXPECT_EQ(BufferPool::process().bytes_in_use(), before);
}

TEST_P(FrozenWeightFormats, NoTokensGiveNoProduct) {
  const Tensor x({0, extents().in}, compute());
  const Tensor y({0, extents().out}, compute());
  EXPECT_NO_THROW(weight().matmul(x, y, Accumulate::kNo));
  EXPECT_NO_THROW(weight().matmul_transposed(y, x, Accumulate::kNo));
}

TEST_P(FrozenWeightFormats, WrongShapesAreRefusedByName) {
  const Tensor x = input(extents().in);
  const Tensor y({extents().tokens, extents().out + 1}, compute());
  try {
    weight().matmul(x, y, Accumulate::kNo);
    ADD_FAILURE() << "a wrong y was accepted";
  } catch (const ArgumentError& error) {
    EXPECT_NE(std::string(error.what()).find("weight w: y: expected ["), std::string::npos)
        << error.what();
  }
  const Tensor row({1, extents().in}, compute());
  const int32_t beyond = static_cast<int32_t>(extents().out);
  EXPECT_THROW(weight().rows(std::vector<int32_t>{beyond}, row), ArgumentError);
  EXPECT_THROW(weight().rows(std::vector<int32_t>{-1}, row), ArgumentError);
  EXPECT_THROW(weight().dequantize_rows(beyond, beyond + 1, row), ArgumentError);
  EXPECT_THROW(weight().dequantize_rows(0, 0, row), ArgumentError);
}

const QuantizationOptions kFormats[] = {{"none", 64, false}, {"nf4", 64, false}, {"nf4", 64, true},
                                        {"nf4", 4096, true}, {"fp4", 64, false}, {"fp4", 128, true},
                                        {"int8", 64, false}};
// The second comes to the products of few rows, the third is too narrow for them, the last has too
// many rows.
const Extents kExtents[] = {{1, 1, 1}, {17, 217, 256}, {5, 33, 577}, {131, 70, 320}};

std::string name_of_case(const testing::TestParamInfo<Parameter>& info) {
  const Extents& extents = std::get<2>(info.param);
  return text_of(std::get<0>(info.param), std::get<1>(info.param)) + "_" +
         std::to_string(extents.tokens) + "x" + std::to_string(extents.out) + "x" +
         std::to_string(extents.in);
}

INSTANTIATE_TEST_SUITE_P(All, FrozenWeightFormats,
                         testing::Combine(testing::ValuesIn(kFormats),
                                          testing::Values(DType::kFloat32, DType::kBFloat16),
                                          testing::ValuesIn(kExtents)),
                         name_of_case);

// L = sum(g * y) with y = x W^T: dL/dx = g W, compared with differences of L in fp64.
TEST(FrozenWeight, InputGradientAgreesWithFiniteDifferences) {
  constexpr int64_t kTokens = 3;
  constexpr int64_t kOut = 17;
  constexpr int64_t kIn = 33;
  const std::vector<float> g = normal_values(kTokens * kOut, 1.0f, 8);
  for (const QuantizationOptions& options : kFormats) {
    const LoadedWeight loaded(options, kOut, kIn, DType::kFloat32);
    const auto loss = [&](const std::vector<float>& values) {
      const Tensor y({kTokens, kOut}, DType::kFloat32);
      loaded.weight->matmul(Tensor::from(values, {kTokens, kIn}), y, Accumulate::kNo);
      double sum = 0.0;
      for (int64_t i = 0; i < y.numel(); ++i)
        sum += static_cast<double>(g[static_cast<size_t>(i)]) * y.data<float>()[i];
      return sum;
    };
    const Tensor dx({kTokens, kIn}, DType::kFloat32);
    loaded.weight->matmul_transposed(Tensor::from(g, {kTokens, kOut}), dx, Accumulate::kNo);
    std::vector<float> x = normal_values(kTokens * kIn, 1.0f, 9);
    for (size_t i = 0; i < x.size(); i += 5) {
      const float kept = x[i];
      constexpr float kStep = 0.5f;  // L is linear in x: a large step only lessens rounding
      x[i] = kept + kStep;
      const double above = loss(x);
      const float high = x[i];
      x[i] = kept - kStep;
      const double below = loss(x);
      const double slope = (above - below) / (static_cast<double>(high) - x[i]);
      x[i] = kept;
      // 17 outputs of sums of 33 products below about 1, each rounded 33 times at 2^-24.
      EXPECT_NEAR(dx.data<float>()[i], slope, 17 * 33 * 0x1p-24) << options.method << " " << i;
    }
  }
}

}  // namespace
}  // namespace shardtune::quant
