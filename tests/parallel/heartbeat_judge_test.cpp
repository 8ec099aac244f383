#include "parallel/heartbeat_judge.h"

#include <gtest/gtest.h>

namespace shardtune::parallel {
namespace {

constexpr double kPeriod = 0.25;
using Watches = HeartbeatJudge::Watches;

Beat beat_at(int64_t step, uint64_t ticks, uint64_t begun, uint64_t ended) {
  Beat beat;
  beat.step = step;
  beat.ticks = ticks;
  beat.calls_begun = begun;
  beat.calls_ended = ended;
  return beat;
}

// All ranks beat every period from `begin` to `end`; the first loss on the way.
std::optional<Loss> run(HeartbeatJudge& judge, const std::vector<Beat>& beats, double begin,
                        double end) {
  for (double now = begin; now <= end; now += kPeriod) {
    for (size_t rank = 0; rank < beats.size(); ++rank)
      judge.heard(static_cast<int>(rank), beats[rank], now);
    if (const auto loss = judge.judge(now, kPeriod))
      return loss;
  }
  return std::nullopt;
}

TEST(HeartbeatJudge, SilenceIsForgivenUpToTwiceTheHeartbeat) {
  HeartbeatJudge judge(2, Watches::kAllRanks, 0.0);
  std::optional<Loss> loss;
  double now = 0.0;
  for (; now < 60.0 && !loss; now += kPeriod) {
    judge.heard(0, beat_at(-1, static_cast<uint64_t>(now * 4), 1, 0), now);
    if (now <= 3.0)
      judge.heard(1, {}, now);
    loss = judge.judge(now, kPeriod);
  }
  ASSERT_TRUE(loss);
  EXPECT_EQ(loss->rank, 1);
  EXPECT_EQ(loss->reason, LossReason::kSilent);
  EXPECT_GT(loss->seconds, 20.0);
  EXPECT_LT(loss->seconds, 20.6);
}

TEST(HeartbeatJudge, ItsOwnPauseIsHeldAgainstNobody) {
  HeartbeatJudge judge(2, Watches::kAllRanks, 0.0);
  const std::vector<Beat> beats{beat_at(-1, 1, 0, 0), beat_at(-1, 1, 0, 0)};
  EXPECT_FALSE(run(judge, beats, 0.0, 5.0));
  EXPECT_FALSE(judge.judge(1000.0, kPeriod));
  EXPECT_FALSE(run(judge, beats, 1000.25, 1010.0));
}

TEST(HeartbeatJudge, TheRankOutsideOfCallsIsBlamedAndNotTheOnesThatWait) {
  HeartbeatJudge judge(3, Watches::kAllRanks, 0.0);
  judge.set_deadlines({.step_timeout_seconds = 40.0});
  const auto loss =
      run(judge, {beat_at(5, 10, 8, 7), beat_at(5, 12, 7, 7), beat_at(5, 14, 8, 7)}, 0.0, 100.0);
  ASSERT_TRUE(loss);
  EXPECT_EQ(loss->rank, 1);
  EXPECT_EQ(loss->reason, LossReason::kStandsStill);
  EXPECT_GT(loss->seconds, 40.0);
  EXPECT_LT(loss->seconds, 41.0);
}

TEST(HeartbeatJudge, NobodyIsBlamedWhileOneMakesProgress) {
  HeartbeatJudge judge(2, Watches::kAllRanks, 0.0);
  judge.set_deadlines({.step_timeout_seconds = 1.0});
  for (double now = 0.0; now < 100.0; now += kPeriod) {
    judge.heard(0, beat_at(5, 10, 8, 7), now);  // waits in call 8
    judge.heard(1, beat_at(5, static_cast<uint64_t>(now / kPeriod), 7, 7), now);
    ASSERT_FALSE(judge.judge(now, kPeriod));
  }
}

TEST(HeartbeatJudge, WhenAllWaitTheOneFurthestBehindIsBlamed) {
  HeartbeatJudge judge(3, Watches::kAllRanks, 0.0);
  judge.set_deadlines({.step_timeout_seconds = 1.0});
  const auto loss =
      run(judge, {beat_at(5, 10, 8, 7), beat_at(5, 12, 8, 7), beat_at(5, 9, 6, 5)}, 0.0, 10.0);
  ASSERT_TRUE(loss);
  EXPECT_EQ(loss->rank, 2);
  EXPECT_EQ(loss->reason, LossReason::kAllStandStill);
}

TEST(HeartbeatJudge, TheDeadlineFollowsTheMedianStep) {
  HeartbeatJudge judge(2, Watches::kAllRanks, 0.0);
  EXPECT_EQ(judge.step_deadline(), 300.0);  // the first step has nothing to be measured by
  judge.note_step_seconds(0.5);
  EXPECT_EQ(judge.step_deadline(), 30.0);
  for (const double seconds : {7.0, 8.0, 9.0, 100.0})
    judge.note_step_seconds(seconds);
  EXPECT_EQ(judge.step_deadline(), 80.0);
  judge.set_deadlines({.step_timeout_seconds = 12.0});
  EXPECT_EQ(judge.step_deadline(), 12.0);
}

TEST(HeartbeatJudge, OutsideOfStepsTheSetUpDeadlineHolds) {
  HeartbeatJudge judge(2, Watches::kAllRanks, 0.0);
  judge.set_deadlines({.step_timeout_seconds = 1.0});
  const auto loss = run(judge, {beat_at(-1, 10, 8, 7), beat_at(-1, 12, 7, 7)}, 0.0, 400.0);
  ASSERT_TRUE(loss);
  EXPECT_EQ(loss->rank, 1);
  EXPECT_GT(loss->seconds, 300.0);
}

TEST(HeartbeatJudge, WhoLeftIsNotMissedAndOtherRanksWatchRankZeroAlone) {
  HeartbeatJudge judge(2, Watches::kAllRanks, 0.0);
  judge.forget(1);
  HeartbeatJudge other(3, Watches::kRankZero, 0.0);
  other.set_deadlines({.step_timeout_seconds = 1.0});
  for (double now = 0.0; now < 100.0; now += kPeriod) {
    judge.heard(0, beat_at(-1, static_cast<uint64_t>(now * 4), 0, 0), now);
    ASSERT_FALSE(judge.judge(now, kPeriod));
    other.heard(0, beat_at(5, 1, 8, 7), now);
    ASSERT_FALSE(other.judge(now, kPeriod));
  }
}

}  // namespace
}  // namespace shardtune::parallel
