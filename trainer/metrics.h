// One line of metrics.jsonl.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/activity.h"
#include "trainer/event_file.h"
#include "trainer/step.h"

namespace shardtune::trainer {

/// Of one rank in one step.
struct RankStep {
  int64_t peak_rss_bytes = 0;
  ActivityTimes times{};  // seconds; their sum is the step's
  /// Of the rank's host, told by its first rank; 0 by the others, NaN without a counter.
  double joules = 0.0;
};

struct StepMetrics {
  int64_t step = 0;  // counted from 1
  StepResult result;
  double seconds = 0.0;
  double prefetch_cpu_seconds = 0.0;  // of the thread that brings units ahead or checks them
  double limit_fraction = 0.0;        // see trainer/limit.h
  std::vector<RankStep> ranks;
  std::optional<double> eval_loss;
};

/// Ranks listed one by one in rank_time_ms; of more ranks the smallest and largest times stand in
/// time_ms_min and time_ms_max. time_ms is rank 0's.
inline constexpr size_t kMaxListedRanks = 64;

/// Of all hosts; absent when one has no counter.
std::optional<double> joules_of_step(const StepMetrics& metrics);

/// What TensorBoard gets of a step: tags as Hugging Face's trainer writes them.
Scalars scalars_of(const StepMetrics& metrics, double epoch);

/// Without the line's end.
std::string metrics_line(const StepMetrics& metrics);

}  // namespace shardtune::trainer
