#include "core/activity.h"

#include <chrono>

namespace shardtune {

namespace {

class Clock {
 public:
  Activity current() const { return current_; }

  /// Charges the time since the last switch to the activity that ends; returns it.
  Activity switch_to(Activity next) {
    const auto now = std::chrono::steady_clock::now();
    times_[static_cast<size_t>(current_)] += std::chrono::duration<double>(now - since_).count();
    since_ = now;
    const Activity before = current_;
    current_ = next;
    return before;
  }

  const ActivityTimes& times() {
    switch_to(current_);
    return times_;
  }

 private:
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  Activity current_ = Activity::kOther;
  ActivityTimes times_{};
};

Clock& clock_of_thread() {
  thread_local Clock clock;
  return clock;
}

}  // namespace

std::string_view name_of(Activity activity) {
  constexpr std::array<std::string_view, kNumActivities> kNames = {
      "linears",   "attention",     "head",  "adapters", "other",
      "optimizer", "communication", "units", "data",     "idle"};
  return kNames[static_cast<size_t>(activity)];
}

ActivityTimes activity_times() { return clock_of_thread().times(); }

ActivityScope::ActivityScope(Activity activity) : before_(clock_of_thread().switch_to(activity)) {}

ActivityScope::~ActivityScope() { clock_of_thread().switch_to(before_); }

Activity ActivityScope::current() { return clock_of_thread().current(); }

}  // namespace shardtune
