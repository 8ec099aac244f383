#include "parallel/shards.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "core/rng.h"

namespace shardtune::parallel {
namespace {

std::vector<ShardedTensor> random_tensors(uint64_t seed) {
  const CounterRng rng(seed);
  std::vector<ShardedTensor> tensors;
  for (uint64_t t = 0; t < 1 + rng.below(0, 12); ++t)
    tensors.push_back({ParameterId{static_cast<int32_t>(3 * t)},
                       static_cast<int64_t>(rng.below(t + 1, 5) * rng.below(t + 99, 9000))});
  return tensors;
}

TEST(Shards, RangesOfAllRanksAreEveryElementOnceInOrder) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const auto tensors = random_tensors(seed);
    for (const int world_size : {1, 2, 3, 5, 8, 64}) {
      const ShardLayout layout(tensors, world_size);
      std::vector<ShardRange> joined;
      for (int rank = 0; rank < world_size; ++rank) {
        for (const ShardRange& range : layout.ranges(rank)) {
          EXPECT_EQ(range.begin % kShardGranule, 0);
          EXPECT_LT(range.begin, range.end);
          if (!joined.empty() && joined.back().id == range.id) {
            ASSERT_EQ(joined.back().end, range.begin);
            joined.back().end = range.end;
          } else {
            joined.push_back(range);
          }
        }
      }
      EXPECT_EQ(joined, layout.all_ranges());
    }
  }
}

TEST(Shards, ChunkCOfCBelongsToRankCNOverC) {
  for (const int world_size : {1, 2, 3, 4, 7, 13}) {
    const ShardLayout layout({{ParameterId{0}, 10 * kShardGranule}, {ParameterId{1}, 1}},
                             world_size);
    ASSERT_EQ(layout.num_chunks(), 11);
    EXPECT_EQ(layout.first_chunk(0), 0);
    EXPECT_EQ(layout.first_chunk(world_size), 11);
    for (int64_t chunk = 0; chunk < 11; ++chunk) {
      const int owner = layout.owner_of_chunk(chunk);
      EXPECT_EQ(owner, chunk * world_size / 11);
      EXPECT_LE(layout.first_chunk(owner), chunk);
      EXPECT_LT(chunk, layout.first_chunk(owner + 1));
    }
  }
}

TEST(Shards, LoadsDifferByOneChunkAtMost) {
  const ShardLayout layout({{ParameterId{0}, 100 * kShardGranule}}, 7);
  for (int rank = 0; rank < 7; ++rank) {
    const int64_t chunks = layout.first_chunk(rank + 1) - layout.first_chunk(rank);
    EXPECT_GE(chunks, 14);
    EXPECT_LE(chunks, 15);
  }
}

TEST(Shards, EmptyAndMisusedLayouts) {
  const ShardLayout empty({}, 4);
  EXPECT_EQ(empty.num_chunks(), 0);
  EXPECT_TRUE(empty.ranges(3).empty());
  EXPECT_THROW(empty.owner_of_chunk(0), ArgumentError);
  EXPECT_THROW(empty.ranges(4), ArgumentError);
  EXPECT_THROW(ShardLayout({}, 0), ArgumentError);
  EXPECT_THROW(ShardLayout({{ParameterId{0}, -1}}, 1), ArgumentError);
}

}  // namespace
}  // namespace shardtune::parallel
