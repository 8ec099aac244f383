#include "core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace shardtune {
namespace {

// kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds.
TEST(Philox, GivesThePublishedWords) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox(0, {0, 0, 0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(UINT64_MAX, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(MixKey, DependsOnSeedWordsOrderAndName) {
  const std::set<uint64_t> keys = {mix_key(5, {}),     mix_key(6, {}),     mix_key(5, {0}),
                                   mix_key(5, {1}),    mix_key(5, {1, 2}), mix_key(5, {2, 1}),
                                   mix_key(5, {0, 0}), mix_key(5, "a"),    mix_key(5, "b"),
                                   mix_key(5, "ab"),   mix_key(6, "a")};
  EXPECT_EQ(keys.size(), 11u);
  EXPECT_EQ(mix_key(7, {1, 2}), mix_key(7, {1, 2}));
}

TEST(CounterRng, ValuesDependOnKeyAndIndexOnly) {
  const CounterRng rng(42);
  const uint32_t late = rng.bits(1'000'003);
  for (uint64_t i = 0; i < 10; ++i)
    rng.bits(i);
  EXPECT_EQ(rng.bits(1'000'003), late);
  EXPECT_EQ(CounterRng(42).bits(1'000'003), late);
  EXPECT_NE(CounterRng(43).bits(1'000'003), late);
  EXPECT_NE(rng.bits(0), rng.bits(uint64_t{4} << 32));
}

// Moments of n draws lie within five standard errors of the true ones.
TEST(CounterRng, UniformAndNormalHaveTheirMoments) {
  const CounterRng rng(mix_key(3, "moments"));
  constexpr int kDraws = 200'000;
  double uniform = 0;
  double normal = 0;
  double square = 0;
  for (int i = 0; i < kDraws; ++i) {
    const float u = rng.uniform(i);
    ASSERT_TRUE(u >= 0.0f && u < 1.0f);
    const double z = rng.normal(i);
    ASSERT_TRUE(std::isfinite(z));
    uniform += u;
    normal += z;
    square += z * z;
  }
  const double error = 5.0 / std::sqrt(kDraws);
  EXPECT_NEAR(uniform / kDraws, 0.5, error * std::sqrt(1.0 / 12));
  EXPECT_NEAR(normal / kDraws, 0.0, error);
  EXPECT_NEAR(square / kDraws, 1.0, error * std::sqrt(2.0));
}

TEST(CounterRng, BelowCoversItsRangeEvenly) {
  const CounterRng rng(9);
  constexpr int kBound = 7;
  constexpr int kDraws = 70'000;
  int counts[kBound] = {};
  for (int i = 0; i < kDraws; ++i)
    ++counts[rng.below(i, kBound)];
  for (const int count : counts)  // five standard deviations of a binomial with p = 1/7
    EXPECT_NEAR(count, kDraws / kBound, 5 * std::sqrt(kDraws * (1.0 / 7) * (6.0 / 7)));
  EXPECT_EQ(rng.below(3, 1), 0u);
  EXPECT_LT(rng.below(3, UINT64_MAX), UINT64_MAX);
}

}  // namespace
}  // namespace shardtune
