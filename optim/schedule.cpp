#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/registry.h"

namespace shardtune::optim {

namespace {
using Factor = double (*)(int64_t s, const ScheduleOptions& options);

double as_double(int64_t value) { return static_cast<double>(value); }

double warmup(int64_t s, const ScheduleOptions& options) {
  return as_double(s) / as_double(std::max<int64_t>(1, options.warmup_steps));
}

double constant(int64_t, const ScheduleOptions&) { return 1.0; }

double constant_with_warmup(int64_t s, const ScheduleOptions& options) {
  return s < options.warmup_steps ? warmup(s, options) : 1.0;
}

double linear(int64_t s, const ScheduleOptions& options) {
  if (s < options.warmup_steps)
    return warmup(s, options);
  const int64_t decay_steps = std::max<int64_t>(1, options.total_steps - options.warmup_steps);
  return std::max(0.0, as_double(options.total_steps - s) / as_double(decay_steps));
}

double cosine(int64_t s, const ScheduleOptions& options) {
  if (s < options.warmup_steps)
    return warmup(s, options);
  const int64_t decay_steps = std::max<int64_t>(1, options.total_steps - options.warmup_steps);
  const double progress = as_double(s - options.warmup_steps) / as_double(decay_steps);
  constexpr double kNumCycles = 0.5;
  return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * kNumCycles * 2.0 * progress)));
}

const Registry<Factor>& schedules() {
  static const Registry<Factor> table("training.lr_scheduler_type",
                                      {{"constant", &constant},
                                       {"constant_with_warmup", &constant_with_warmup},
                                       {"linear", &linear},
                                       {"cosine", &cosine}});
  return table;
}
}  // namespace

std::vector<std::string> schedule_names() { return schedules().names(); }

Schedule::Schedule(ScheduleOptions options)
    : options_(std::move(options)), factor_(schedules().at(options_.type)) {
  if (options_.total_steps < 0 || options_.warmup_steps < 0)
    throw ArgumentError("schedule: expected steps >= 0, found total_steps " +
                        std::to_string(options_.total_steps) + ", warmup_steps " +
                        std::to_string(options_.warmup_steps));
  if (options_.type == "constant" && options_.warmup_steps > 0)
    throw ConfigError("training.lr_scheduler_type: 'constant' has no warm-up, found " +
                      std::to_string(options_.warmup_steps) +
                      " warm-up steps. Write 'constant_with_warmup', or no warm-up.");
}

double Schedule::learning_rate(int64_t s) const {
  return options_.learning_rate * factor_(s, options_);
}

int64_t resolve_warmup_steps(int64_t total_steps, int64_t warmup_steps, double warmup_ratio) {
  if (warmup_steps > 0)
    return warmup_steps;
  return static_cast<int64_t>(std::ceil(as_double(total_steps) * warmup_ratio));
}

}  // namespace shardtune::optim
