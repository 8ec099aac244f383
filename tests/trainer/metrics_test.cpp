#include "trainer/metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "io/json.h"

namespace shardtune::trainer {
namespace {

StepMetrics of_ranks(size_t ranks) {
  StepMetrics metrics;
  metrics.step = 7;
  metrics.result.loss = 1.0 / 3.0;
  metrics.result.num_tokens = 2048;
  metrics.seconds = 0.5;
  metrics.limit_fraction = 0.7512345;
  for (size_t r = 0; r < ranks; ++r) {
    RankStep rank;
    rank.peak_rss_bytes = 1000 + static_cast<int64_t>(r % 50);
    for (size_t i = 0; i < kNumActivities; ++i)
      rank.times[i] = 1e-3 * static_cast<double>(i + 1) + 1e-3 * static_cast<double>(r);
    metrics.ranks.push_back(rank);
  }
  return metrics;
}

io::Json parsed(const StepMetrics& metrics) {
  return io::parse_json(metrics_line(metrics), "metrics.jsonl");
}

TEST(Metrics, OneRankHasItsTimesAlone) {
  const io::Json line = parsed(of_ranks(1));
  EXPECT_EQ(line.find("step")->as_integer(), 7);
  EXPECT_EQ(line.find("loss")->as_number(), 0.333333333);
  EXPECT_EQ(line.find("tokens_per_second")->as_number(), 4096.0);
  EXPECT_EQ(line.find("limit_fraction")->as_number(), 0.7512);
  EXPECT_EQ(line.find("time_ms")->find("linears")->as_number(), 1.0);
  EXPECT_EQ(line.find("time_ms")->find("idle")->as_number(), 10.0);
  EXPECT_EQ(line.find("rank_time_ms"), nullptr);
  EXPECT_EQ(line.find("time_ms_min"), nullptr);
  EXPECT_EQ(line.find("eval_loss"), nullptr);
}

TEST(Metrics, RanksAreListedAndTheLargestMemoryCounts) {
  StepMetrics metrics = of_ranks(kMaxListedRanks);
  metrics.eval_loss = 2.5;
  const io::Json line = parsed(metrics);
  EXPECT_EQ(line.find("peak_rss_bytes")->as_integer(), 1049);
  const auto& attention = line.find("rank_time_ms")->find("attention")->as_array();
  ASSERT_EQ(attention.size(), kMaxListedRanks);
  EXPECT_EQ(attention[3].as_number(), 5.0);
  EXPECT_EQ(line.find("time_ms_min"), nullptr);
  EXPECT_EQ(line.find("eval_loss")->as_number(), 2.5);
}

TEST(Metrics, EnergyIsToldWhenEveryHostHasACounter) {
  StepMetrics metrics = of_ranks(4);
  metrics.ranks[0].joules = 12.5;
  metrics.ranks[2].joules = 7.5;  // first rank of a second host
  EXPECT_EQ(parsed(metrics).find("joules")->as_number(), 20.0);
  metrics.ranks[2].joules = std::nan("");
  EXPECT_EQ(parsed(metrics).find("joules"), nullptr);
}

TEST(Metrics, OfManyRanksTheExtremesStand) {
  const io::Json line = parsed(of_ranks(kMaxListedRanks + 1));
  EXPECT_EQ(line.find("rank_time_ms"), nullptr);
  EXPECT_EQ(line.find("time_ms")->find("head")->as_number(), 3.0);
  EXPECT_EQ(line.find("time_ms_min")->find("head")->as_number(), 3.0);
  EXPECT_EQ(line.find("time_ms_max")->find("head")->as_number(), 67.0);
  EXPECT_LT(metrics_line(of_ranks(4096)).size(), 2000u);
}

}  // namespace
}  // namespace shardtune::trainer
