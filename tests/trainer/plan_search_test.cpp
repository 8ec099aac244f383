// Which choices a plan proposes, on made-up needs: bytes that only the choice decides.
#include "trainer/plan_search.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace shardtune::trainer {
namespace {

using parallel::FrozenPlace;
using parallel::ZeroStage;

/// 100 for a dense base or 25, activations of 8 per row or 2 with recompute at 1,000 tokens, states
/// of 20 that stages from 1 on share out over the ranks. Stage 2 sends least.
RunPlan made_up(const PlanChoice& choice, int ranks) {
  RunPlan plan;
  plan.choice = choice;
  plan.ranks = ranks;
  const int64_t row = choice.gradient_checkpointing ? 2 : 8;
  const int64_t base = choice.quantization.method == "nf4" ? 25 : 100;
  const int64_t states = choice.stage == ZeroStage::k0 ? 20 : 20 / ranks;
  plan.first_rank_bytes = base + choice.micro_batch_size * row * choice.max_length / 1000 + states;
  plan.other_rank_bytes = plan.first_rank_bytes;
  plan.shared_bytes = choice.base == FrozenPlace::kHost ? base : 0;
  plan.step_traffic.store.gradients.sent = 3 - static_cast<int64_t>(choice.stage == ZeroStage::k2);
  return plan;
}

PlanFunction on(int ranks) {
  return [ranks](const PlanChoice& choice) { return made_up(choice, ranks); };
}

PlanChoice eight_rows() {
  PlanChoice choice;
  choice.micro_batch_size = 8;
  choice.max_length = 1000;
  return choice;
}

TEST(CheapestPlan, KeepsTheConfiguredOneWhereItFits) {
  const auto plan = cheapest_that_fits(on(1), eight_rows(), {1, 184});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->choice.micro_batch_size, 8);
  EXPECT_FALSE(plan->choice.gradient_checkpointing);
}

TEST(CheapestPlan, CountsTheSwapFilesOfAllRanks) {
  RunPlan plan;
  plan.ranks = 2;
  plan.swap = {{30, 10}, {20, 11}};
  HostLimit host{2, 0, {50, 21, false}};
  EXPECT_TRUE(fits_swap(plan, host));
  host.swap.states = 20;
  EXPECT_FALSE(fits_swap(plan, host));
  host.swap = {70, 70, true};
  EXPECT_FALSE(fits_swap(plan, host));  // 50 + 21 on one disk
  // A host of one of the two ranks may have the larger one.
  EXPECT_EQ(plan.host_swap(1).base, 30);
  EXPECT_EQ(plan.host_swap(2).states, 21);
}

TEST(CheapestPlan, TakesTheStageThatSendsLeast) {
  const auto plan = cheapest_that_fits(on(2), eight_rows(), {2, 1000});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->choice.stage, ZeroStage::k2);
}

TEST(CheapestPlan, PrefersSmallerMicroBatchesToRecompute) {
  const auto plan = cheapest_that_fits(on(1), eight_rows(), {1, 152});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->choice.micro_batch_size, 4);
  EXPECT_FALSE(plan->choice.gradient_checkpointing);
}

TEST(CheapestPlan, RecomputesWhereNothingElseFits) {
  const auto plan = cheapest_that_fits(on(1), eight_rows(), {1, 124});
  ASSERT_TRUE(plan);
  EXPECT_TRUE(plan->choice.gradient_checkpointing);
  EXPECT_EQ(plan->choice.micro_batch_size, 2);
}

TEST(CheapestPlan, IsNothingWhenTheBaseAloneIsTooLarge) {
  EXPECT_FALSE(cheapest_that_fits(on(1), eight_rows(), {1, 100}));
}

TEST(Suggestions, AreThreeThatFitFewestKeysFirst) {
  const HostLimit host{1, 140};
  const auto suggestions = suggest(on(1), eight_rows(), host);
  ASSERT_EQ(suggestions.size(), 3u);
  EXPECT_EQ(suggestions[0].options, "--set training.micro_batch_size=2");
  EXPECT_EQ(suggestions[1].options, "--set training.gradient_checkpointing=true");
  for (const Suggestion& suggestion : suggestions)
    EXPECT_TRUE(fits(suggestion.plan, host)) << suggestion.options;
}

TEST(Suggestions, ShardOnSeveralRanks) {
  // Two ranks need 2 x (100 + 64 + 20); sharded states save 20 in all.
  const auto suggestions = suggest(on(2), eight_rows(), {2, 350});
  ASSERT_FALSE(suggestions.empty());
  bool shards = false;
  for (const Suggestion& suggestion : suggestions)
    shards = shards || suggestion.options.find("zero_optimization.stage=2") != std::string::npos;
  EXPECT_TRUE(shards);
}

TEST(Suggestions, ShareTheBaseOfAHost) {
  // Two ranks need 2 x (100 + 64 + 20), with one base 268.
  const auto suggestions = suggest(on(2), eight_rows(), {2, 270});
  EXPECT_NE(std::ranges::find(suggestions, "--set parallel.share_base_per_host=true",
                              &Suggestion::options),
            suggestions.end());
  PlanChoice on_nvme = eight_rows();
  on_nvme.base = FrozenPlace::kNvme;
  for (const Suggestion& suggestion : suggest(on(2), on_nvme, {2, 270}))
    EXPECT_EQ(suggestion.options.find("share_base"), std::string::npos) << suggestion.options;
}

TEST(CheapestPlan, Stage3SharesNothing) {
  PlanChoice shared = eight_rows();
  shared.base = FrozenPlace::kHost;
  EXPECT_EQ(shared.at_stage(ZeroStage::k2).base, FrozenPlace::kHost);
  EXPECT_EQ(shared.at_stage(ZeroStage::k3).base, FrozenPlace::kMemory);
  // A share of 50 of the base at stage 3 is the least here.
  const auto plan = cheapest_that_fits(on(2), shared, {2, 248});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->choice.base, FrozenPlace::kHost);
}

TEST(Suggestions, AreNoneWhenNothingHelps) {
  EXPECT_TRUE(suggest(on(1), eight_rows(), {1, 30}).empty());
}

}  // namespace
}  // namespace shardtune::trainer
