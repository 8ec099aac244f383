// What a run left in its directory, read for a report: metrics.jsonl, resolved_config.yaml and
// train.log. The run may be under way, killed in the middle of a line, or not ours at all, so
// every line is taken for hostile.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/activity.h"
#include "trainer/thinned_rows.h"

namespace shardtune::trainer {

/// Columns of RunRecords::steps; the parts of a step's time follow as kTimes + Activity.
enum class Metric : size_t {
  kLoss,
  kGradNorm,
  kLearningRate,
  kTokens,
  kTokensPerSecond,
  kStepTimeMs,
  kPeakRssBytes,
  kLimitFraction,
  kJoules,
  kTimes,
};
inline constexpr size_t kNumColumns = static_cast<size_t>(Metric::kTimes) + kNumActivities;
constexpr size_t column_of(Metric metric) { return static_cast<size_t>(metric); }
constexpr size_t column_of(Activity activity) {
  return column_of(Metric::kTimes) + static_cast<size_t>(activity);
}

/// Sums of milliseconds over the lines that had them.
struct RankTimes {
  std::vector<ActivityTimes> of_rank;  // rank_time_ms
  ActivityTimes min{}, max{};          // time_ms_min and time_ms_max
  int64_t num_lines = 0;               // with of_rank
  int64_t num_extreme_lines = 0;       // with min and max
};

struct RunRecords {
  std::string name;  // of the directory
  int64_t num_lines = 0;
  int64_t num_bad_lines = 0;  // no step, or one that does not follow
  bool is_cut = false;        // the file ends inside a line
  int64_t last_step = 0;
  ThinnedRows steps{kNumColumns};
  ThinnedRows evaluations{1};
  ThinnedCell last[kNumColumns];  // of the last line; count 0: not there
  RankTimes ranks;

  std::string config;  // "": not there
  bool has_log = false;
  std::vector<std::string> warnings;  // the last kMaxWarnings warnings and errors of train.log
  int64_t num_warnings = 0;
  std::vector<std::string> log_end;  // its last lines
  bool has_adapter = false;          // the run came to its end

  static constexpr size_t kMaxWarnings = 100;
  static constexpr size_t kLogLines = 40;
};

/// Errors  MissingInputError: no such directory, or no metrics.jsonl in it; DataError:
///         metrics.jsonl has lines and none is a metrics line
RunRecords read_run(const std::filesystem::path& folder);

}  // namespace shardtune::trainer
