// Any number of ranks, any stage: the bits of one rank.
#include "parallel/sharded_store.h"

#include <gtest/gtest.h>

#include <cstring>
#include <mutex>

#include "parallel/thread_communicator.h"
#include "tests/parallel/training_steps.h"

namespace shardtune::parallel {
namespace {

const std::vector<int64_t> kMicroBatchesOfSteps{5, 1, 9, 2, 3, 7};

const RunResult& reference_run() {
  static const RunResult result = [] {
    const auto comm = make_single_communicator();
    return TrainingSteps(*comm, ZeroStage::k0).run(kMicroBatchesOfSteps);
  }();
  return result;
}

class ShardedStoreRanks : public testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(ShardedStoreRanks, GiveTheBitsOfOneRank) {
  const auto [world_size, stage] = GetParam();
  const RunResult& expected = reference_run();
  std::mutex mutex;
  int num_ranks = 0;
  run_on_threads(world_size, [&, stage = stage](Communicator& comm) {
    const RunResult result = TrainingSteps(comm, zero_stage_from(stage)).run(kMicroBatchesOfSteps);
    const std::lock_guard lock(mutex);
    ++num_ranks;
    EXPECT_EQ(result.square_sums, expected.square_sums);
    EXPECT_EQ(result.losses, expected.losses);
    EXPECT_EQ(result.reached, expected.reached);
    EXPECT_TRUE(result.weights == expected.weights);
    EXPECT_TRUE(result.bf16 == expected.bf16);
  });
  EXPECT_EQ(num_ranks, world_size);
}

INSTANTIATE_TEST_SUITE_P(All, ShardedStoreRanks,
                         testing::Combine(testing::Values(1, 2, 3, 4, 8),
                                          testing::Values(0, 1, 2, 3)),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) + "RanksStage" +
                                  std::to_string(std::get<1>(info.param));
                         });

// The tree of DESIGN section 8.2, written down directly: terms in order of m, pairs of equal height
// joined at once, the rest folded from the low end.
std::vector<float> explicit_tree(std::vector<std::optional<std::vector<float>>> terms) {
  const auto join = [](const auto& a, const auto& b) {
    if (!a || !b)
      return a ? a : b;
    auto sum = *a;
    for (size_t i = 0; i < sum.size(); ++i)
      sum[i] += (*b)[i];
    return std::optional(sum);
  };
  const std::function<std::optional<std::vector<float>>(size_t, size_t)> complete =
      [&](size_t first, size_t count) {
        if (count == 1)
          return terms[first];
        return join(complete(first, count / 2), complete(first + count / 2, count / 2));
      };
  std::vector<std::pair<size_t, size_t>> subtrees;  // largest first
  size_t first = 0;
  for (size_t bit = size_t{1} << 40; bit > 0; bit >>= 1) {
    if ((terms.size() & bit) != 0) {
      subtrees.emplace_back(first, bit);
      first += bit;
    }
  }
  std::optional<std::vector<float>> sum;
  for (size_t i = subtrees.size(); i-- > 0;)
    sum = join(complete(subtrees[i].first, subtrees[i].second), sum);
  return sum.value();
}

TEST(ShardedStore, Bf16CopiesAreTheRoundedWeightsAfterEachUpdate) {
  run_on_threads(2, [](Communicator& comm) {
    const RunResult result = TrainingSteps(comm, ZeroStage::k2).run({3, 2});
    for (size_t t = 0; t < result.weights.size(); ++t) {
      for (size_t i = 0; i < result.weights[t].size(); ++i)
        ASSERT_EQ(result.bf16[t][i], BFloat16(result.weights[t][i]).bits);
    }
  });
}

TEST(ShardedStore, GradientsAreTheTreeOverMicroBatches) {
  for (const int64_t num_micro_batches : {1, 2, 3, 5, 7, 8, 9}) {
    const auto comm = make_single_communicator();
    TrainingSteps steps(*comm, ZeroStage::k2);
    ShardedParameterStore& store = steps.store();
    store.begin_step(num_micro_batches);
    std::vector<std::optional<std::vector<float>>> terms;
    const Shape shape = store.spec(steps.ids()[3]).shape;
    for (int64_t m = 0; m < num_micro_batches; ++m) {
      store.begin_micro_batch(m);
      terms.emplace_back();
      if (m != 1) {
        terms.back() = TrainingSteps::leaf(0, m, 3, shape.numel());
        store.grad(steps.ids()[3], TensorView(terms.back()->data(), DType::kFloat32, shape));
      }
      store.end_round();
    }
    store.finish_gradients();
    const auto expected = explicit_tree(terms);
    for (const auto& segment : store.segments()) {
      if (segment.id != steps.ids()[3]) {
        EXPECT_FALSE(segment.has_gradient);
        EXPECT_TRUE(std::ranges::all_of(segment.gradient, [](float g) { return g == 0.0f; }));
        continue;
      }
      EXPECT_TRUE(segment.has_gradient);
      ASSERT_EQ(segment.gradient.size(), expected.size());
      EXPECT_EQ(std::memcmp(segment.gradient.data(), expected.data(), expected.size() * 4), 0);
    }
  }
}

TEST(ShardedStore, StageTwoKeepsOneLeafAndAFewShards) {
  run_on_threads(4, [](Communicator& comm) {
    TrainingSteps steps(comm, ZeroStage::k2);
    steps.run({16});
    const StoreMemory memory = steps.store().memory();
    const int64_t whole = steps.store().num_trainable_elements() * 4;
    // One leaf and the finished shard; a tensor may begin after a gap of up to 60 bytes, and the
    // largest shard is one chunk above the mean.
    const int64_t gaps = 7 * 60;
    EXPECT_LE(memory.gradient_bytes, whole + gaps + whole / 4 + kShardGranule * 4);
    EXPECT_LE(memory.buffer_bytes, 3 * (whole / 4 + kShardGranule * 4 + gaps));
    EXPECT_EQ(memory.base_bytes, 999);
  });
}

TEST(ShardedStore, CancelledStepLeavesNoTrace) {
  const RunResult& expected = reference_run();
  run_on_threads(3, [&](Communicator& comm) {
    TrainingSteps steps(comm, ZeroStage::k2);
    ShardedParameterStore& store = steps.store();
    // A probe: one micro-batch per rank without end_round(), and one step broken off in the middle.
    for (const bool with_round : {false, true}) {
      store.begin_step(3);
      store.begin_micro_batch(store.micro_batch_of_round(0));
      const Shape shape = store.spec(steps.ids()[6]).shape;
      const auto leaf = TrainingSteps::leaf(9, 9, 6, shape.numel());
      store.grad(steps.ids()[6], TensorView(leaf.data(), DType::kFloat32, shape));
      if (with_round)
        store.end_round();
      store.cancel_step();
    }
    EXPECT_TRUE(steps.run(kMicroBatchesOfSteps) == expected);
  });
}

TEST(ShardedStore, FrozenBytesReachEveryRank) {
  for (const ZeroStage stage : {ZeroStage::k1, ZeroStage::k3}) {
    run_on_threads(4, [&](Communicator& comm) {
      TrainingSteps steps(comm, stage);
      ShardedParameterStore& store = steps.store();
      const UnitLease lease = store.acquire(store.spec(steps.frozen()).unit, Pass::kForward);
      const auto bytes = store.value(steps.frozen()).bytes();
      ASSERT_EQ(bytes.size(), 999u);
      for (size_t i = 0; i < bytes.size(); ++i)
        ASSERT_EQ(bytes[i], static_cast<std::byte>(i * 7));
    });
  }
}

TEST(ShardedStore, SegmentsOfAllRanksCoverEveryElementOnce) {
  const auto layout_ranges = [](int world_size, ZeroStage stage) {
    std::mutex mutex;
    std::map<int64_t, std::vector<int>> hits;
    run_on_threads(world_size, [&](Communicator& comm) {
      TrainingSteps steps(comm, stage);
      const std::lock_guard lock(mutex);
      for (const auto& segment : steps.store().segments()) {
        auto& of_tensor = hits[static_cast<int64_t>(segment.id)];
        of_tensor.resize(static_cast<size_t>(steps.store().spec(segment.id).shape.numel()));
        for (int64_t i = segment.begin; i < segment.end; ++i)
          ++of_tensor[static_cast<size_t>(i)];
        EXPECT_EQ(static_cast<int64_t>(segment.parameter.size()), segment.end - segment.begin);
      }
    });
    return hits;
  };
  for (const auto& [id, hits] : layout_ranges(3, ZeroStage::k2))
    EXPECT_TRUE(std::ranges::all_of(hits, [](int n) { return n == 1; })) << id;
  for (const auto& [id, hits] : layout_ranges(3, ZeroStage::k0))
    EXPECT_TRUE(std::ranges::all_of(hits, [](int n) { return n == 3; })) << id;
}

TEST(ShardedStore, WritesAreReadBackAndReachOtherRanks) {
  for (const ZeroStage stage : {ZeroStage::k2, ZeroStage::k3}) {
    run_on_threads(3, [&](Communicator& comm) {
      TrainingSteps steps(comm, stage);
      ShardedParameterStore& store = steps.store();
      // Each rank writes only what it owns, as a loader of sharded state does.
      for (const auto& segment : store.segments()) {
        std::vector<float> values(segment.parameter.size());
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = static_cast<float>(segment.begin) + static_cast<float>(i);
        store.write(segment.id, segment.begin, values);
      }
      store.publish_updates();
      const UnitLease lease = store.acquire(store.spec(steps.ids()[0]).unit, Pass::kForward);
      for (const ParameterId id : steps.ids()) {
        const int64_t numel = store.spec(id).shape.numel();
        std::vector<float> values(comm.rank() == 0 ? static_cast<size_t>(numel) : 0);
        store.read(id, values);
        for (int64_t i = 0; i < numel; ++i) {
          ASSERT_EQ(store.value(id).data<float>()[i], static_cast<float>(i));
          if (!values.empty()) {
            ASSERT_EQ(values[static_cast<size_t>(i)], static_cast<float>(i));
          }
        }
      }
      std::vector<float> two(2);
      EXPECT_THROW(store.read(steps.ids()[1], two), ArgumentError);
      EXPECT_THROW(store.write(steps.ids()[1], 4096, two), ArgumentError);
      EXPECT_THROW(store.write(steps.ids()[1], -1, two), ArgumentError);
    });
  }
}

// A whole write, as a resume does it: every rank keeps its part.
TEST(ShardedStore, StageThreeKeepsItsPartOfAWholeWrite) {
  run_on_threads(3, [&](Communicator& comm) {
    TrainingSteps steps(comm, ZeroStage::k3);
    ShardedParameterStore& store = steps.store();
    std::vector<float> written(20000);
    for (size_t i = 0; i < written.size(); ++i)
      written[i] = static_cast<float>(i) + 0.5f;
    store.write(steps.ids()[3], 0, written);
    store.publish_updates();
    const UnitLease lease = store.acquire(store.spec(steps.ids()[3]).unit, Pass::kForward);
    const auto found = store.value(steps.ids()[3]).span<const float>();
    EXPECT_TRUE(std::equal(found.begin(), found.end(), written.begin()));
  });
}

}  // namespace
}  // namespace shardtune::parallel
