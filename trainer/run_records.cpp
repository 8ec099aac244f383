#include "trainer/run_records.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <string_view>

#include "io/file.h"
#include "io/json.h"

namespace shardtune::trainer {
namespace {

namespace fs = std::filesystem;

constexpr double kAbsent = std::numeric_limits<double>::quiet_NaN();
constexpr size_t kMaxLineBytes = 1 << 20;
constexpr size_t kMaxShownBytes = 2000;  // of a line of the log
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxRanks = 64;  // what metrics.h lists

/// Calls visit(line, is_whole) for every line; the last may lack its end.
void for_each_line(const fs::path& file,
                   const std::function<void(std::string_view line, bool is_whole)>& visit) {
  const io::MappedFile mapped(file);
  const std::span<const std::byte> bytes = mapped.bytes();
  std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  while (!text.empty()) {
    const size_t end = text.find('\n');
    visit(text.substr(0, end), end != std::string_view::npos);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
}

double number_at(const io::Json* object, std::string_view key) {
  const io::Json* value = object == nullptr ? nullptr : object->find(key);
  return value != nullptr && value->is_number() ? value->as_number() : kAbsent;
}

ActivityTimes times_at(const io::Json* object) {
  ActivityTimes times{};
  for (size_t i = 0; i < times.size(); ++i)
    times[i] = number_at(object, name_of(static_cast<Activity>(i)));
  return times;
}

/// NaN and negative times, which no run writes, count as nothing.
void add_times(const ActivityTimes& times, ActivityTimes& sums) {
  for (size_t i = 0; i < times.size(); ++i)
    sums[i] += times[i] > 0.0 && times[i] < 1e15 ? times[i] : 0.0;
}

void add_rank_times(const io::Json& line, RankTimes& ranks) {
  if (const io::Json* lists = line.find("rank_time_ms")) {
    size_t num_ranks = 0;
    std::vector<ActivityTimes> times;
    for (size_t i = 0; i < kNumActivities; ++i) {
      const io::Json* list = lists->find(name_of(static_cast<Activity>(i)));
      if (list == nullptr || !list->is_array())
        return;
      if (i == 0) {
        num_ranks = list->as_array().size();
        times.resize(num_ranks);
      }
      if (list->as_array().size() != num_ranks || num_ranks > kMaxRanks)
        return;
      for (size_t r = 0; r < num_ranks; ++r) {
        const io::Json& value = list->as_array()[r];
        times[r][i] = value.is_number() ? value.as_number() : 0.0;
      }
    }
    // A resumed run may have other ranks; the last ones count.
    if (ranks.of_rank.size() != num_ranks) {
      ranks.of_rank.assign(num_ranks, {});
      ranks.num_lines = 0;
    }
    for (size_t r = 0; r < num_ranks; ++r)
      add_times(times[r], ranks.of_rank[r]);
    ++ranks.num_lines;
  }
  const io::Json* least = line.find("time_ms_min");
  const io::Json* most = line.find("time_ms_max");
  if (least != nullptr && most != nullptr) {
    add_times(times_at(least), ranks.min);
    add_times(times_at(most), ranks.max);
    ++ranks.num_extreme_lines;
  }
}

/// False when the line is none of ours or does not follow the one before.
bool add_line(std::string_view text, RunRecords& run) {
  if (text.size() > kMaxLineBytes)
    return false;
  io::Json line;
  try {
    line = io::parse_json(text, "metrics.jsonl");
  } catch (const DataError&) {
    return false;
  }
  const io::Json* step = line.find("step");
  if (step == nullptr || !step->is_integer() || step->as_integer() <= run.last_step)
    return false;
  run.last_step = step->as_integer();
  const auto x = static_cast<double>(run.last_step);
  std::array<double, kNumColumns> values{};
  constexpr const char* kKeys[] = {"loss",           "grad_norm",         "learning_rate",
                                   "tokens",         "tokens_per_second", "step_time_ms",
                                   "peak_rss_bytes", "limit_fraction",    "joules"};
  static_assert(std::size(kKeys) == column_of(Metric::kTimes));
  for (size_t c = 0; c < std::size(kKeys); ++c)
    values[c] = number_at(&line, kKeys[c]);
  const ActivityTimes times = times_at(line.find("time_ms"));
  std::ranges::copy(times, values.begin() + column_of(Metric::kTimes));
  run.steps.add(x, values);
  for (size_t c = 0; c < kNumColumns; ++c)
    run.last[c] =
        std::isfinite(values[c]) ? ThinnedCell{1, values[c], values[c], values[c]} : ThinnedCell{};
  const double eval_loss = number_at(&line, "eval_loss");
  if (std::isfinite(eval_loss))
    run.evaluations.add(x, std::span(&eval_loss, 1));
  add_rank_times(line, run.ranks);
  return true;
}

/// "2026-11-28 07:14:08 W text"
bool is_warning(std::string_view line) {
  constexpr size_t kLevelAt = 20;
  return line.size() > kLevelAt + 1 && line[kLevelAt - 1] == ' ' && line[kLevelAt + 1] == ' ' &&
         (line[kLevelAt] == 'W' || line[kLevelAt] == 'E' || line[kLevelAt] == 'C');
}

void read_log(const fs::path& file, RunRecords& run) {
  std::deque<std::string> warnings;
  std::deque<std::string> end;
  const auto keep = [](std::deque<std::string>& lines, std::string_view line, size_t limit) {
    lines.emplace_back(line.substr(0, kMaxShownBytes));
    if (lines.size() > limit)
      lines.pop_front();
  };
  for_each_line(file, [&](std::string_view line, bool) {
    if (is_warning(line)) {
      ++run.num_warnings;
      keep(warnings, line, RunRecords::kMaxWarnings);
    }
    keep(end, line, RunRecords::kLogLines);
  });
  run.warnings.assign(warnings.begin(), warnings.end());
  run.log_end.assign(end.begin(), end.end());
  run.has_log = true;
}

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

}  // namespace

RunRecords read_run(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error))
    throw MissingInputError(folder.string() +
                            ": expected the directory of a run (checkpoint.output_dir), found " +
                            (fs::exists(folder, error) ? "a file" : "nothing") +
                            ". Give the folder that holds metrics.jsonl.");
  const fs::path metrics = folder / "metrics.jsonl";
  if (!is_file(metrics))
    throw MissingInputError(metrics.string() +
                            ": expected the records of a run, found no such file. Give the "
                            "directory that checkpoint.output_dir named.");
  RunRecords run;
  run.name = fs::weakly_canonical(folder, error).filename().string();
  for_each_line(metrics, [&](std::string_view line, bool is_whole) {
    if (add_line(line, run))
      ++run.num_lines;
    else if (is_whole)
      ++run.num_bad_lines;
    else
      run.is_cut = true;
  });
  if (run.num_lines == 0 && run.num_bad_lines > 0)
    throw DataError(metrics.string() + ": expected one JSON object with a step per line, found " +
                    std::to_string(run.num_bad_lines) +
                    " other lines. Give the directory of a run of shardtune.");
  if (is_file(folder / "resolved_config.yaml"))
    run.config = io::read_text_file(folder / "resolved_config.yaml", kMaxConfigBytes);
  if (is_file(folder / "train.log"))
    read_log(folder / "train.log", run);
  run.has_adapter = fs::is_directory(folder / "adapter", error);
  return run;
}

}  // namespace shardtune::trainer
