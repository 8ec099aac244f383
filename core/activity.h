// What the thread that drives a rank spends its time on. A scope names the activity until it ends;
// time inside an inner scope counts for the inner one alone, so that the times of a thread add up
// to the time that passed. A scope costs two readings of the clock. Each thread has times of its
// own: work that others do beside it (gathers ahead, saving) does not show here.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace shardtune {

enum class Activity : uint8_t {
  kLinears,        // products with frozen weights, decoding included
  kAttention,      // scores and values, without the linears around them
  kHead,           // products of the head, cross-entropy
  kAdapters,       // what hooks add
  kOther,          // norms, activations, sums, everything without a scope
  kOptimizer,      // sums of gradients, clipping, update, copies for products
  kCommunication,  // moving bytes in collective calls
  kUnits,          // waiting for units: gathers and reads that were not ready in time
  kData,           // choosing and laying out micro-batches
  kIdle,           // waiting for other ranks to come to a collective call
};
inline constexpr int kNumActivities = 10;

/// "linears", "attention", "head", ...: keys of time_ms in metrics.jsonl.
std::string_view name_of(Activity activity);

/// Seconds by Activity.
using ActivityTimes = std::array<double, kNumActivities>;

/// Of the calling thread since its first scope or call of this.
ActivityTimes activity_times();

class ActivityScope {
 public:
  explicit ActivityScope(Activity activity);
  ~ActivityScope();
  ActivityScope(const ActivityScope&) = delete;
  ActivityScope& operator=(const ActivityScope&) = delete;

  /// Of the calling thread; kOther outside of scopes.
  static Activity current();

 private:
  Activity before_;
};

}  // namespace shardtune
