// Learning rates over the steps of a run: the factors of transformers' get_*_schedule.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shardtune::optim {

struct ScheduleOptions {
  std::string type = "linear";  // constant | constant_with_warmup | linear | cosine
  double learning_rate = 0.0;   // the peak
  int64_t total_steps = 0;      // of the whole run, also when it is stopped early
  int64_t warmup_steps = 0;
};

/// Source  transformers 5.23.0, optimization.py (cosine: num_cycles 0.5)
class Schedule {
 public:
  /// ConfigError: unknown type; constant with warm-up steps (transformers would ignore them).
  /// ArgumentError: negative steps.
  explicit Schedule(ScheduleOptions options);

  /// Rate that optimizer step s uses; s counts from 0.
  double learning_rate(int64_t s) const;
  const ScheduleOptions& options() const { return options_; }

 private:
  using Factor = double (*)(int64_t s, const ScheduleOptions& options);
  ScheduleOptions options_;
  Factor factor_;
};

std::vector<std::string> schedule_names();

/// As transformers: warmup_steps when positive, else ceil(total_steps * warmup_ratio).
int64_t resolve_warmup_steps(int64_t total_steps, int64_t warmup_steps, double warmup_ratio);

}  // namespace shardtune::optim
