#include "core/parallel_for.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

namespace shardtune {
namespace {

class ParallelFor : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    before_ = num_threads();
    set_num_threads(GetParam());
  }
  void TearDown() override { set_num_threads(before_); }

 private:
  int before_ = 1;
};

TEST_P(ParallelFor, VisitsEveryIndexOnce) {
  for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
    for (const int64_t grain : {0, 1, 16, 5000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          ++visits[static_cast<size_t>(i)];
      });
      for (const auto& n : visits)
        ASSERT_EQ(n, 1);
    }
    std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
    parallel_tasks(count, [&](int64_t i) { ++visits[static_cast<size_t>(i)]; });
    for (const auto& n : visits)
      ASSERT_EQ(n, 1);
  }
}

TEST_P(ParallelFor, HandsExceptionsToTheCaller) {
  const auto fail_at = [](int64_t i) {
    if (i == 37)
      throw std::runtime_error("index 37");
  };
  EXPECT_THROW(parallel_tasks(100, fail_at), std::runtime_error);
  EXPECT_THROW(parallel_for(100, 1,
                            [&](int64_t begin, int64_t end) {
                              for (int64_t i = begin; i < end; ++i)
                                fail_at(i);
                            }),
               std::runtime_error);
  EXPECT_NO_THROW(parallel_tasks(10, fail_at));
}

TEST_P(ParallelFor, NestedLoopsRun) {
  std::atomic<int> total = 0;
  parallel_tasks(8, [&](int64_t) {
    parallel_for(10, 1,
                 [&](int64_t begin, int64_t end) { total += static_cast<int>(end - begin); });
  });
  EXPECT_EQ(total, 80);
}

INSTANTIATE_TEST_SUITE_P(Threads, ParallelFor, testing::Values(1, 2, 3, 8));

}  // namespace
}  // namespace shardtune
