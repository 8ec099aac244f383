#include "data/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"

namespace shardtune::data {
namespace {

/// Samples whose lengths spread like short instructions: most short, some long.
std::vector<Sample> make_samples(int count, int64_t max_length) {
  const CounterRng rng(5);
  std::vector<Sample> samples(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const auto scale =
        static_cast<uint64_t>(rng.below(2 * i, 8) == 0 ? max_length : max_length / 4);
    const auto length = static_cast<std::size_t>(2 + rng.below(2 * i + 1, scale - 1));
    samples[i].id = i;
    samples[i].ids.assign(length, static_cast<int32_t>(i));
    samples[i].trained.assign(length, 0);
    std::fill(samples[i].trained.begin() + static_cast<long>(length / 2), samples[i].trained.end(),
              1);
  }
  return samples;
}

PlanOptions small_options() {
  PlanOptions options;
  options.max_length = 256;
  options.micro_batch_size = 2;
  options.global_batch_size = 5;
  return options;
}

bool equal(const StepPlan& a, const StepPlan& b) {
  return a.num_tokens == b.num_tokens && a.num_trained_tokens == b.num_trained_tokens &&
         std::equal(a.micro_batches.begin(), a.micro_batches.end(), b.micro_batches.begin(),
                    b.micro_batches.end(), [](const auto& x, const auto& y) {
                      return x.samples == y.samples && x.num_tokens == y.num_tokens;
                    });
}

class PackingOf : public ::testing::TestWithParam<Packing> {};

TEST_P(PackingOf, EveryEpochHoldsEverySampleOnce) {
  const auto samples = make_samples(503, 256);
  PlanOptions options = small_options();
  options.packing = GetParam();
  const DataPlan plan(samples, options);
  int64_t step = 0;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int> seen(samples.size(), 0);
    for (const int64_t end = step + plan.steps_in_epoch(epoch); step < end; ++step) {
      EXPECT_GE(plan.epoch_of_step(step), static_cast<double>(epoch));
      EXPECT_LT(plan.epoch_of_step(step), static_cast<double>(epoch + 1));
      for (const MicroBatchPlan& micro_batch : plan.step(step).micro_batches) {
        for (const int64_t index : micro_batch.samples)
          ++seen[static_cast<std::size_t>(index)];
      }
    }
    EXPECT_EQ(seen, std::vector<int>(samples.size(), 1));
    EXPECT_EQ(step, plan.total_steps(epoch + 1));
  }
}

TEST_P(PackingOf, CountsAreThoseOfTheBatchesAndStepsHoldTheRightRows) {
  const auto samples = make_samples(300, 256);
  PlanOptions options = small_options();
  options.packing = GetParam();
  const DataPlan plan(samples, options);
  for (int64_t step = 0; step < plan.steps_in_epoch(0); ++step) {
    const StepPlan each = plan.step(step);
    EXPECT_LE(each.micro_batches.size(), 3u);  // 5 rows as 2 + 2 + 1
    int64_t tokens = 0, trained = 0;
    for (const MicroBatchPlan& micro_batch : each.micro_batches) {
      const TokenBatch batch = collate(samples, micro_batch);
      EXPECT_EQ(batch.num_tokens(), micro_batch.num_tokens);
      EXPECT_EQ(batch.num_trained_tokens, micro_batch.num_trained_tokens);
      EXPECT_LE(micro_batch.num_tokens, options.max_length * options.micro_batch_size);
      if (GetParam() == Packing::kOneSamplePerRow) {
        EXPECT_LE(micro_batch.samples.size(), 2u);
      }
      tokens += micro_batch.num_tokens;
      trained += micro_batch.num_trained_tokens;
    }
    EXPECT_EQ(each.num_tokens, tokens);
    EXPECT_EQ(each.num_trained_tokens, trained);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, PackingOf,
                         ::testing::Values(Packing::kPacked, Packing::kOneSamplePerRow),
                         [](const auto& info) {
                           return info.param == Packing::kPacked ? "Packed" : "OneSamplePerRow";
                         });

TEST(DataPlan, IsAPureFunctionOfSeedAndEpochInAnyOrderOfAsking) {
  const auto samples = make_samples(200, 256);
  const DataPlan forward(samples, small_options());
  const DataPlan backward(samples, small_options());
  const int64_t steps = forward.total_steps(4);
  for (int64_t step = steps - 1; step >= 0; --step)
    backward.step(step);
  for (int64_t step = 0; step < steps; ++step)
    EXPECT_TRUE(equal(forward.step(step), backward.step(step))) << step;
  PlanOptions other = small_options();
  other.seed = 43;
  EXPECT_FALSE(equal(forward.step(0), DataPlan(samples, other).step(0)));
  EXPECT_FALSE(equal(forward.step(0), forward.step(forward.steps_in_epoch(0))));
}

TEST(DataPlan, SequentialOrderWithoutPackingIsTheOrderOfTheFile) {
  const auto samples = make_samples(20, 256);
  PlanOptions options = small_options();
  options.order = Order::kSequential;
  options.packing = Packing::kOneSamplePerRow;
  const DataPlan plan(samples, options);
  std::vector<int64_t> order;
  for (int64_t step = 0; step < plan.steps_in_epoch(0); ++step) {
    for (const MicroBatchPlan& micro_batch : plan.step(step).micro_batches)
      order.insert(order.end(), micro_batch.samples.begin(), micro_batch.samples.end());
  }
  std::vector<int64_t> expected(20);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order, expected);
}

TEST(DataPlan, PackingWastesAtMostTwoPercent) {
  const auto samples = make_samples(4000, 1024);
  PlanOptions options;
  options.micro_batch_size = 1;
  options.global_batch_size = 1;
  const DataPlan plan(samples, options);
  int64_t tokens = 0;
  for (const Sample& sample : samples)
    tokens += static_cast<int64_t>(sample.ids.size());
  const int64_t rows = plan.steps_in_epoch(0);
  EXPECT_LE(static_cast<double>(rows * options.max_length), 1.02 * static_cast<double>(tokens));
  for (int64_t row = 0; row < rows; ++row)
    EXPECT_LE(plan.step(row).num_tokens, options.max_length);
}

TEST(DataPlan, ShuffleMovesSamplesEverywhere) {
  // Mean distance of a uniform permutation from the file's order is a third of its length; a shift
  // or a local shuffle is far from it. Standard error at 3000 samples is below 1%.
  std::vector<Sample> samples(3000);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    samples[i].ids = {1, 2};
    samples[i].trained = {0, 1};
  }
  PlanOptions options = small_options();
  options.packing = Packing::kOneSamplePerRow;
  options.global_batch_size = 3000;
  double distance = 0;
  int64_t place = 0;
  for (const MicroBatchPlan& micro_batch : DataPlan(samples, options).step(0).micro_batches) {
    for (const int64_t index : micro_batch.samples)
      distance += static_cast<double>(std::abs(index - place++)) / 3000.0;
  }
  EXPECT_NEAR(distance / 3000.0, 1.0 / 3.0, 0.03);
}

TEST(DataPlan, LongestMicroBatchIsTheMostTokensOfTheFirstSteps) {
  const auto samples = make_samples(400, 256);
  const DataPlan plan(samples, small_options());
  for (const int64_t num_steps : {int64_t{1}, int64_t{7}, plan.total_steps(2)}) {
    std::pair<int64_t, int64_t> longest;  // of as many tokens the most trained
    for (int64_t step = 0; step < num_steps; ++step) {
      for (const MicroBatchPlan& micro_batch : plan.step(step).micro_batches)
        longest = std::max(longest, {micro_batch.num_tokens, micro_batch.num_trained_tokens});
    }
    const MicroBatchPlan found = plan.longest_micro_batch(num_steps);
    EXPECT_EQ(std::pair(found.num_tokens, found.num_trained_tokens), longest);
  }
}

TEST(DataPlan, RowsHaveRoomForTheVirtualTokensOfEverySample) {
  const auto samples = make_samples(300, 200);
  PlanOptions options = small_options();
  options.micro_batch_size = 1;
  options.num_virtual_tokens = 40;
  const DataPlan plan(samples, options);
  int64_t most = 0;
  for (int64_t step = 0; step < plan.steps_in_epoch(0); ++step) {
    for (const MicroBatchPlan& micro_batch : plan.step(step).micro_batches) {
      EXPECT_EQ(micro_batch.num_virtual_tokens, 40 * std::ssize(micro_batch.samples));
      EXPECT_LE(micro_batch.num_rows(), options.max_length);
      most = std::max(most, micro_batch.num_rows());
    }
  }
  EXPECT_GT(most, options.max_length - 40);
  int64_t longest = 0;
  for (const Sample& sample : samples)
    longest = std::max(longest, std::ssize(sample.ids));
  options.num_virtual_tokens = options.max_length - longest;
  EXPECT_NO_THROW(DataPlan(samples, options));
  ++options.num_virtual_tokens;  // the longest has no row any more
  EXPECT_THROW(DataPlan(samples, options), ArgumentError);
}

TEST(DataPlan, RefusesSamplesLongerThanARowAndEmptySets) {
  const auto samples = make_samples(10, 256);
  PlanOptions options = small_options();
  options.max_length = 3;
  EXPECT_THROW(DataPlan(samples, options), ArgumentError);
  EXPECT_THROW(DataPlan({}, small_options()), ArgumentError);
  options = small_options();
  options.micro_batch_size = 0;
  EXPECT_THROW(DataPlan(samples, options), ArgumentError);
}

TEST(Collate, ShiftsLabelsWithinEachSample) {
  std::vector<Sample> samples(2);
  samples[0] = {{10, 11, 12}, {0, 0, 1}, Cut::kNone, 70, 0};
  samples[1] = {{20, 21}, {0, 1}, Cut::kNone, 71, 1};
  const TokenBatch batch = collate(samples, {{1, 0}, 5, 2});
  EXPECT_EQ(batch.ids, (std::vector<int32_t>{20, 21, 10, 11, 12}));
  EXPECT_EQ(batch.labels, (std::vector<int32_t>{21, kIgnoreLabel, kIgnoreLabel, 12, kIgnoreLabel}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 0, 1, 2}));
  EXPECT_EQ(batch.sample_offsets, (std::vector<int32_t>{0, 2, 5}));
  EXPECT_EQ(batch.sample_ids, (std::vector<uint64_t>{71, 70}));
  EXPECT_EQ(batch.num_trained_tokens, 2);
}

TEST(PlanEvaluation, KeepsOrderAndStaysUnderTheBoundWhereSamplesDo) {
  const auto samples = make_samples(100, 256);
  int64_t next = 0;
  for (const MicroBatchPlan& micro_batch : plan_evaluation(samples, 300)) {
    EXPECT_LE(micro_batch.num_tokens, 300);
    for (const int64_t index : micro_batch.samples)
      EXPECT_EQ(index, next++);
  }
  EXPECT_EQ(next, 100);
  EXPECT_EQ(plan_evaluation(samples, 1).size(), samples.size());
}

}  // namespace
}  // namespace shardtune::data
