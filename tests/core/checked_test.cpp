#include "core/checked.h"

#include <gtest/gtest.h>

#include <array>

namespace shardtune {
namespace {

TEST(Checked, ProductsAndSumsThatWrapAreErrors) {
  EXPECT_EQ(checked_mul(1ll << 31, 1ll << 31), 1ll << 62);
  EXPECT_THROW(checked_mul(1ll << 32, 1ll << 31), ArgumentError);
  EXPECT_THROW(checked_mul(INT64_MIN, -1), ArgumentError);
  EXPECT_EQ(checked_add(INT64_MAX, 0), INT64_MAX);
  EXPECT_THROW(checked_add(INT64_MAX, 1), ArgumentError);
  EXPECT_EQ(try_mul(INT64_MAX, 2), std::nullopt);
  EXPECT_EQ(try_add(INT64_MIN, -1), std::nullopt);
}

TEST(Checked, NumelRefusesNegativeAndWrappingExtents) {
  EXPECT_EQ(try_numel({}), 1);
  EXPECT_EQ(try_numel(std::array<int64_t, 3>{2, 0, 5}), 0);
  EXPECT_EQ(try_numel(std::array<int64_t, 2>{2, -1}), std::nullopt);
  // 2^42+1 squared wraps to a small number in 64 bits.
  EXPECT_EQ(try_numel(std::array<int64_t, 2>{(1ll << 42) + 1, (1ll << 42) + 1}), std::nullopt);
}

TEST(Checked, NarrowKeepsTheValueOrThrows) {
  EXPECT_EQ(narrow<int32_t>(int64_t{INT32_MAX}), INT32_MAX);
  EXPECT_EQ(narrow<int8_t>(-128), -128);
  EXPECT_THROW(narrow<int32_t>(int64_t{INT32_MAX} + 1), ArgumentError);
  EXPECT_THROW(narrow<uint32_t>(-1), ArgumentError);
  EXPECT_THROW(narrow<int64_t>(UINT64_MAX), ArgumentError);
  EXPECT_THROW(narrow<uint8_t>(256), ArgumentError);
}

TEST(Checked, DivisionsRoundUp) {
  EXPECT_EQ(ceil_div(7, 4), 2);
  EXPECT_EQ(ceil_div(8, 4), 2);
  EXPECT_EQ(round_up(0, 8), 0);
  EXPECT_EQ(round_up(9, 8), 16);
}

}  // namespace
}  // namespace shardtune
