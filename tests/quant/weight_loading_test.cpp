// Loading: slabs, publishers, refused values and options.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "quant/nf4.h"
#include "tests/quant/weight_fixture.h"

namespace shardtune::quant {
namespace {

const QuantizationOptions kFormats[] = {{"none", 64, false},
                                        {"nf4", 64, false},
                                        {"nf4", 64, true},
                                        {"int8", 64, false},
                                        {"fp4", 64, true}};

template <typename ErrorClass, typename Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const ErrorClass& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(WeightLoading, ComponentsAreNamedAfterTheWeight) {
  const auto names = [](const QuantizationOptions& options) {
    FakeStore store;
    const UnitId unit = store.add_unit("layer");
    const auto weight = make_frozen_weight({&store, unit, "m.w", 8, 16, DType::kBFloat16}, options);
    EXPECT_EQ(weight->format(), options.method);
    EXPECT_EQ(weight->name(), "m.w");
    std::vector<std::string> result;
    for (const ParameterId id : weight->components())
      result.push_back(store.spec(id).name);
    return result;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(kFormats[0]), (Names{"m.w"}));
  EXPECT_EQ(names(kFormats[1]), (Names{"m.w.codes", "m.w.absmax"}));
  EXPECT_EQ(names(kFormats[2]),
            (Names{"m.w.codes", "m.w.absmax_codes", "m.w.nested_absmax", "m.w.nested_offset"}));
  EXPECT_EQ(names(kFormats[3]), (Names{"m.w.codes", "m.w.absmax"}));
}

// More than one slab of rows, with blocks that run across rows and slabs.
TEST(WeightLoading, SlabsGiveTheBytesOfTheWholeTensor) {
  constexpr int64_t kOut = 1500;
  constexpr int64_t kIn = 1001;
  for (const int64_t block_size : {64, 4096}) {
    const LoadedWeight loaded({"nf4", block_size, false}, kOut, kIn, DType::kFloat32);
    std::vector<uint8_t> codes(kOut * kIn / 2);
    std::vector<float> absmax(ceil_div(kOut * kIn, block_size));
    ASSERT_EQ(nf4_quantize(loaded.values, block_size, codes, absmax), std::nullopt);
    const auto ids = loaded.weight->components();
    const auto equal = [](const std::vector<std::byte>& a, const auto& b) {
      return std::ranges::equal(a, std::as_bytes(std::span(b)));
    };
    EXPECT_TRUE(equal(loaded.store.bytes(ids[0]), codes));
    EXPECT_TRUE(equal(loaded.store.bytes(ids[1]), absmax));
  }
}

// Whichever rank publishes a component hands over the bytes that one process makes.
TEST(WeightLoading, EveryPublisherHandsOverTheSameBytes) {
  constexpr int64_t kOut = 33;
  constexpr int64_t kIn = 70;
  for (const QuantizationOptions& options : kFormats) {
    const LoadedWeight alone(options, kOut, kIn, DType::kBFloat16);
    for (int rank = 0; rank < 3; ++rank) {
      FakeStore store(rank, 3);
      const UnitId unit = store.add_unit("layer");
      const auto weight =
          make_frozen_weight({&store, unit, "w", kOut, kIn, DType::kBFloat16}, options);
      bool asked = false;
      weight->load([&](int64_t begin, int64_t end, float* out) {
        asked = true;
        row_source(alone.values, kIn)(begin, end, out);
      });
      bool publishes = false;
      for (const ParameterId id : weight->components()) {
        if (store.is_publisher(id)) {
          EXPECT_EQ(store.bytes(id), alone.store.bytes(id)) << options.method;
        }
        publishes = publishes || store.is_publisher(id);
      }
      EXPECT_EQ(asked, publishes);
      EXPECT_EQ(store.publish_order(), weight->components());
    }
  }
}

TEST(WeightLoading, NonFiniteValuesAreNamed) {
  constexpr int64_t kOut = 1200;  // row 1111 lies in the second slab
  constexpr int64_t kIn = 1003;
  for (const QuantizationOptions& options : kFormats) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> values(kOut * kIn, 0.5f);
      values[1111 * kIn + 17] = bad;
      FakeStore store;
      const UnitId unit = store.add_unit("layer");
      const auto weight =
          make_frozen_weight({&store, unit, "m.w", kOut, kIn, DType::kFloat32}, options);
      const std::string message =
          message_of<NonFiniteError>([&] { weight->load(row_source(values, kIn)); });
      EXPECT_NE(message.find("weight m.w: expected finite values, found "), std::string::npos)
          << message;
      EXPECT_NE(message.find("at [1111, 17] (index 1114350)"), std::string::npos) << message;
      EXPECT_TRUE(store.publish_order().empty());
    }
  }
}

TEST(WeightLoading, DenseBf16RoundsToNearestEven) {
  const LoadedWeight loaded({"none", 64, false}, 5, 7, DType::kBFloat16);
  const Tensor dense = loaded.dense(DType::kBFloat16);
  for (size_t i = 0; i < loaded.values.size(); ++i)
    EXPECT_EQ(dense.data<BFloat16>()[i].bits, BFloat16(loaded.values[i]).bits);
}

TEST(WeightLoading, BytesOutsideALeaseAreRefused) {
  for (const QuantizationOptions& options : kFormats) {
    LoadedWeight loaded(options, 4, 8, DType::kFloat32);
    loaded.lease.reset();
    EXPECT_THROW(loaded.dense(DType::kFloat32), ArgumentError) << options.method;
  }
}

TEST(QuantizationOptions, AWrongBlockSizeNamesKeyAndAllowedSizes) {
  FakeStore store;
  const UnitId unit = store.add_unit("layer");
  for (const int64_t block_size : {int64_t{0}, int64_t{-64}, int64_t{48}, int64_t{16},
                                   int64_t{8192}, std::numeric_limits<int64_t>::min()}) {
    const QuantizationOptions options{"nf4", block_size, false};
    const std::string expected =
        "quantization.block_size: expected one of 32, 64, 128, 256, 512, 1024, 2048, 4096, found " +
        std::to_string(block_size) + ". Write for example 'block_size: 64'.";
    EXPECT_EQ(message_of<ConfigError>([&] {
                make_frozen_weight({&store, unit, "w", 8, 8, DType::kFloat32}, options);
              }),
              expected);
  }
  EXPECT_EQ(store.num_parameters(), 0);
}

TEST(QuantizationOptions, AnUnknownMethodNamesTheKnownOnes) {
  FakeStore store;
  const UnitId unit = store.add_unit("layer");
  const std::string message = message_of<ConfigError>([&] {
    make_frozen_weight({&store, unit, "w", 8, 8, DType::kFloat32}, {"nf5", 64, false});
  });
  EXPECT_NE(message.find("quantization.method: unknown 'nf5'"), std::string::npos) << message;
  EXPECT_NE(message.find("did you mean 'nf4'?"), std::string::npos) << message;
}

TEST(QuantizationOptions, ImpossibleRequestsAreRefused) {
  FakeStore store;
  const UnitId unit = store.add_unit("layer");
  const int64_t huge = int64_t{1} << 62;
  for (const QuantizationOptions& options : kFormats) {
    const auto make = [&](const FrozenWeightRequest& request) {
      return make_frozen_weight(request, options);
    };
    EXPECT_THROW(make({&store, unit, "w", 0, 8, DType::kFloat32}), ArgumentError);
    EXPECT_THROW(make({&store, unit, "w", 8, -1, DType::kFloat32}), ArgumentError);
    EXPECT_THROW(make({&store, unit, "w", huge, 8, DType::kFloat32}), ArgumentError);
    EXPECT_THROW(make({&store, unit, "w", 8, 8, DType::kFloat16}), ArgumentError);
    EXPECT_THROW(make({nullptr, unit, "w", 8, 8, DType::kFloat32}), ArgumentError);
  }
}

TEST(QuantizationOptions, BytesOfALayerAreKnown) {
  constexpr int64_t kValues = 576 * 1536;
  const auto bytes = [](const QuantizationOptions& options, DType compute) {
    FakeStore store;
    const UnitId unit = store.add_unit("layer");
    const auto weight = make_frozen_weight({&store, unit, "w", 576, 1536, compute}, options);
    int64_t sum = 0;
    for (const ParameterId id : weight->components()) {
      EXPECT_EQ(store.spec(id).kind, ParameterKind::kFrozen);
      EXPECT_EQ(store.spec(id).unit, unit);
      sum += store.spec(id).shape.numel() * size_of(store.spec(id).dtype);
    }
    return sum;
  };
  EXPECT_EQ(bytes({"none", 64, false}, DType::kBFloat16), 2 * kValues);
  EXPECT_EQ(bytes({"nf4", 64, false}, DType::kBFloat16), kValues / 2 + 4 * kValues / 64);
  EXPECT_EQ(bytes({"nf4", 64, true}, DType::kBFloat16), kValues / 2 + 13824 + 4 * 54 + 4);
  EXPECT_EQ(bytes({"int8", 64, false}, DType::kBFloat16), kValues + 4 * 576);
}

}  // namespace
}  // namespace shardtune::quant
