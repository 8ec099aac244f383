#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <sstream>

#include "core/error.h"
#include "tests/optim/golden_rows.h"

namespace shardtune::optim {
namespace {

TEST(Schedule, FollowsTransformers) {
  auto file = open_golden("schedules.txt");
  std::string line;
  int num_cases = 0;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    ScheduleOptions options;
    words >> options.type >> options.total_steps >> options.warmup_steps;
    options.learning_rate = 2e-4;
    const Schedule schedule(options);
    double factor = 0.0;
    for (int64_t s = 0; words >> factor; ++s) {
      // The same fp64 expressions; cos may differ by an ulp between mathematics libraries.
      EXPECT_NEAR(schedule.learning_rate(s), 2e-4 * factor, 2e-4 * 4e-16)
          << options.type << " " << options.total_steps << " " << options.warmup_steps << " " << s;
    }
    ++num_cases;
  }
  EXPECT_EQ(num_cases, 20);
}

TEST(Schedule, RefusesUnknownNamesWithTheNearestOne) {
  try {
    Schedule({.type = "cosin", .learning_rate = 1.0, .total_steps = 1});
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean 'cosine'"), std::string::npos);
  }
}

TEST(Schedule, RefusesWarmupThatWouldBeIgnored) {
  EXPECT_THROW(Schedule({.type = "constant", .total_steps = 10, .warmup_steps = 2}), ConfigError);
  EXPECT_THROW(Schedule({.type = "linear", .total_steps = -1}), ArgumentError);
}

TEST(Schedule, WarmupRatioIsRoundedUp) {
  EXPECT_EQ(resolve_warmup_steps(100, 0, 0.03), 3);
  EXPECT_EQ(resolve_warmup_steps(101, 0, 0.03), 4);
  EXPECT_EQ(resolve_warmup_steps(101, 7, 0.03), 7);
  EXPECT_EQ(resolve_warmup_steps(0, 0, 0.03), 0);
}

}  // namespace
}  // namespace shardtune::optim
