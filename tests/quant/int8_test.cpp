#include "quant/int8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace shardtune::quant {
namespace {

struct Rows {
  std::vector<int8_t> codes;
  std::vector<float> absmax;
};

Rows quantize(const std::vector<float>& x, int64_t rows) {
  Rows result{std::vector<int8_t>(x.size()), std::vector<float>(rows)};
  EXPECT_EQ(int8_quantize_rows(x, std::ssize(x) / rows, result.codes, result.absmax), std::nullopt);
  return result;
}

TEST(Int8, CodesAreRoundedToNearestEven) {
  // absmax 127 makes the factor 1, so the values are the codes before rounding.
  const Rows rows = quantize({127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 0.49999997f}, 1);
  EXPECT_EQ(rows.codes, (std::vector<int8_t>{127, 0, 2, 2, 0, -2, -126, 0}));
  EXPECT_EQ(rows.absmax, (std::vector<float>{127.0f}));
}

TEST(Int8, RowsFollowTheDefinition) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (const int64_t columns : {1, 17, 256}) {
    std::vector<float> x(static_cast<size_t>(217 * columns));
    for (float& value : x)
      value = normal(generator);
    const Rows rows = quantize(x, 217);
    for (int64_t i = 0; i < std::ssize(x); ++i) {
      const float factor = 127.0f / rows.absmax[i / columns];
      ASSERT_EQ(rows.codes[i], std::nearbyint(x[i] * factor)) << i;
    }
  }
}

TEST(Int8, ZeroAndSubnormalRowsKeepTheirMeaning) {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const Rows rows = quantize({0.0f, -0.0f, 2 * tiny, -tiny, 1e-37f, -5e-38f}, 3);
  EXPECT_EQ(rows.codes, (std::vector<int8_t>{0, 0, 127, -64, 127, -64}));
  EXPECT_EQ(rows.absmax, (std::vector<float>{0.0f, 2 * tiny, 1e-37f}));
}

TEST(Int8, AnyRowDequantizesToTheDefinition) {
  std::vector<int8_t> codes(77);
  for (size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<int8_t>(static_cast<int>(i * 71 % 255) - 127);
  for (const float absmax : {0.0f, 1e-44f, 1e-38f, 1e-33f, 0.37f, 3e38f}) {
    for (const size_t count : {size_t{1}, size_t{16}, size_t{31}, size_t{77}}) {
      const Tensor out({static_cast<int64_t>(count)}, DType::kBFloat16);
      int8_dequantize_row(std::span<const int8_t>(codes).first(count), absmax, out);
      for (size_t i = 0; i < count; ++i)
        ASSERT_EQ(out.data<BFloat16>()[i].bits,
                  BFloat16(static_cast<float>(codes[i]) * (absmax / 127.0f)).bits)
            << absmax << " at " << i;
    }
  }
}

TEST(Int8, RoundTripStaysWithinHalfAStep) {
  const std::vector<float> x = {3.0f, -1.234f, 0.011f, 2.99f, -3.0f};
  const Rows rows = quantize(x, 1);
  const Tensor f32({5}, DType::kFloat32);
  const Tensor bf16({5}, DType::kBFloat16);
  int8_dequantize_row(rows.codes, rows.absmax[0], f32);
  int8_dequantize_row(rows.codes, rows.absmax[0], bf16);
  for (size_t i = 0; i < x.size(); ++i) {
    const float expected = static_cast<float>(rows.codes[i]) * (3.0f / 127.0f);
    EXPECT_EQ(f32.data<float>()[i], expected);
    EXPECT_EQ(bf16.data<BFloat16>()[i].bits, BFloat16(expected).bits);
    // Half a step, and a few fp32 roundings of values up to absmax.
    EXPECT_LE(std::fabs(expected - x[i]), 0.5f * 3.0f / 127.0f + 4 * 3.0f * 0x1p-24f);
  }
}

TEST(Int8, TheFirstNonFiniteValueIsFound) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x(5 * 33, 1.0f);
    x[100] = bad;
    x[160] = bad;
    std::vector<int8_t> codes(x.size());
    std::vector<float> absmax(5);
    EXPECT_EQ(int8_quantize_rows(x, 33, codes, absmax), 100);
  }
}

TEST(Int8, WrongSizesAreRefused) {
  std::vector<int8_t> codes(12);
  std::vector<float> absmax(3);
  EXPECT_THROW((void)int8_quantize_rows(std::vector<float>(12), 5, codes, absmax), ArgumentError);
  EXPECT_THROW((void)int8_quantize_rows(std::vector<float>(12), 0, codes, absmax), ArgumentError);
  codes.resize(11);
  EXPECT_THROW((void)int8_quantize_rows(std::vector<float>(12), 4, codes, absmax), ArgumentError);
}

}  // namespace
}  // namespace shardtune::quant
