#include "core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace shardtune {
namespace {

// The value of binary16 bits by its definition, in double.
double half_value(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(Half, EveryHalfBecomesItsFloatAndComesBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = half_to_float(half);
    if ((half & 0x7c00) == 0x7c00) {
      EXPECT_EQ(std::isinf(value), (half & 0x3ff) == 0);
      EXPECT_EQ(std::isnan(value), (half & 0x3ff) != 0);
    } else {
      ASSERT_EQ(static_cast<double>(value), half_value(half));
    }
    ASSERT_EQ(std::signbit(value), (half & 0x8000) != 0);
    if (!std::isnan(value))
      ASSERT_EQ(float_to_half(value), half);
    else
      ASSERT_TRUE(std::isnan(half_to_float(float_to_half(value))));
  }
}

// Between two neighbours: below the middle goes down, above goes up, the middle to the even one.
TEST(Half, EveryMidpointRoundsToEven) {
  for (uint16_t half = 0; half < 0x7bff; ++half) {
    const auto next = static_cast<uint16_t>(half + 1);
    const auto middle = static_cast<float>((half_value(half) + half_value(next)) / 2);
    const uint16_t even = half % 2 == 0 ? half : next;
    ASSERT_EQ(float_to_half(middle), even);
    ASSERT_EQ(float_to_half(-middle), even | 0x8000);
    ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(float_to_half(std::nextafter(middle, INFINITY)), next);
  }
  EXPECT_EQ(float_to_half(65504.0f), 0x7bff);
  EXPECT_EQ(float_to_half(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(1e30f), 0x7c00);
  EXPECT_EQ(float_to_half(-INFINITY), 0xfc00);
}

TEST(BFloat16, EveryValueComesBackAndMidpointsRoundToEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    BFloat16 value;
    value.bits = static_cast<uint16_t>(bits);
    const float wide = value;
    if (std::isnan(wide)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(BFloat16(wide))));
      continue;
    }
    ASSERT_EQ(BFloat16(wide).bits, bits);
    if (std::isinf(wide))
      continue;
    const auto middle = std::bit_cast<float>((bits << 16) | 0x8000u);
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    ASSERT_EQ(BFloat16(middle).bits, even);
    ASSERT_EQ(BFloat16(std::bit_cast<float>((bits << 16) | 0x7fffu)).bits, bits);
    ASSERT_EQ(BFloat16(std::bit_cast<float>((bits << 16) | 0x8001u)).bits, bits + 1);
  }
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(DType, NamesAndSizes) {
  EXPECT_EQ(name_of(DType::kBFloat16), "bfloat16");
  EXPECT_EQ(size_of(DType::kInt64), 8);
  EXPECT_EQ(size_of(DType::kFloat16), 2);
  EXPECT_EQ(size_of(DType::kInt8), 1);
}

}  // namespace
}  // namespace shardtune
