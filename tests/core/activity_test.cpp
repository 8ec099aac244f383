#include "core/activity.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <thread>

namespace shardtune {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

ActivityTimes since(const ActivityTimes& before) {
  ActivityTimes times = activity_times();
  for (size_t i = 0; i < times.size(); ++i)
    times[i] -= before[i];
  return times;
}

double of(const ActivityTimes& times, Activity activity) {
  return times[static_cast<size_t>(activity)];
}

TEST(Activity, InnerScopesKeepTheirTimeAndEverythingAddsUp) {
  const ActivityTimes before = activity_times();
  const auto start = steady_clock::now();
  EXPECT_EQ(ActivityScope::current(), Activity::kOther);
  {
    const ActivityScope adapters(Activity::kAdapters);
    std::this_thread::sleep_for(milliseconds(5));
    {
      const ActivityScope linears(Activity::kLinears);
      EXPECT_EQ(ActivityScope::current(), Activity::kLinears);
      std::this_thread::sleep_for(milliseconds(20));
    }
    EXPECT_EQ(ActivityScope::current(), Activity::kAdapters);
  }
  std::this_thread::sleep_for(milliseconds(2));
  const ActivityTimes times = since(before);
  const double passed = std::chrono::duration<double>(steady_clock::now() - start).count();
  EXPECT_GE(of(times, Activity::kAdapters), 0.005);
  EXPECT_GE(of(times, Activity::kLinears), 0.020);
  EXPECT_GE(of(times, Activity::kOther), 0.002);
  EXPECT_LT(of(times, Activity::kAdapters), passed - 0.020);
  EXPECT_NEAR(std::accumulate(times.begin(), times.end(), 0.0), passed, 1e-3);
}

TEST(Activity, ThreadsHaveTimesOfTheirOwn) {
  const ActivityScope head(Activity::kHead);
  const ActivityTimes before = activity_times();
  std::thread([] {
    EXPECT_EQ(ActivityScope::current(), Activity::kOther);
    const ActivityScope data(Activity::kData);
    std::this_thread::sleep_for(milliseconds(5));
  }).join();
  const ActivityTimes times = since(before);
  EXPECT_EQ(of(times, Activity::kData), 0.0);
  EXPECT_GE(of(times, Activity::kHead), 0.005);
}

TEST(Activity, AScopeThatAnExceptionLeavesEnds) {
  try {
    const ActivityScope optimizer(Activity::kOptimizer);
    throw 1;
  } catch (int) {
  }
  EXPECT_EQ(ActivityScope::current(), Activity::kOther);
}

}  // namespace
}  // namespace shardtune
