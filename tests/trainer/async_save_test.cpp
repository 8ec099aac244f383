// R20: training goes on while a checkpoint is written. fsync is held back until two more steps are
// done, which would never come if a step waited for the disk; the checkpoint still has the state of
// its own step, and a second save that comes early waits for the first. Then the same for many
// saves on a disk of random speed, each compared with the checkpoint of a run that stopped to save.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>

#include "core/rng.h"
#include "tests/trainer/small_run.h"
#include "trainer/checkpoint.h"

namespace {
std::atomic<const std::function<void()>*> g_before_fsync{nullptr};
}  // namespace

extern "C" int fsync(int fd) {
  static const auto real = reinterpret_cast<int (*)(int)>(dlsym(RTLD_NEXT, "fsync"));
  if (const auto* hook = g_before_fsync.load())
    (*hook)();
  return real(fd);
}

namespace shardtune::trainer {
namespace {

using testing::SmallRun;

// Steps that stand in metrics.jsonl.
int64_t num_steps_logged(const fs::path& run) {
  const std::string text = testing::read_text(run / "metrics.jsonl");
  return std::count(text.begin(), text.end(), '\n');
}

bool is_being_saved(const fs::path& run, int64_t step) {
  return fs::exists(run / ("checkpoint-" + std::to_string(step) + ".partial"));
}

TEST(AsyncSave, StepsGoOnWhileACheckpointIsWritten) {
  const SmallRun small;
  small.run(small.config("calm", {"training.max_steps=6", "parallel.threads=1"}));
  const fs::path run = small.path("slow");
  const std::vector<std::string> saving = {"training.max_steps=6", "checkpoint.save_steps=2",
                                           "parallel.threads=1"};
  std::atomic<int> overlapped{0};
  const std::function<void()> hold = [&] {
    if (!is_being_saved(run, 2))
      return;
    // Bounded, so that a saver that blocks its step fails instead of hanging.
    for (int i = 0; i < 400 && num_steps_logged(run) < 4; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    overlapped += num_steps_logged(run) >= 4 ? 1 : 0;
  };
  g_before_fsync = &hold;
  small.run(small.config("slow", saving), 2);
  g_before_fsync = nullptr;
  EXPECT_GT(overlapped.load(), 0) << "no step ran during the save";
  EXPECT_EQ(small.losses("slow"), small.losses("calm"));
  EXPECT_EQ(small.adapter_bytes("slow"), small.adapter_bytes("calm"));

  // Step 2 was written while steps 3 and 4 ran; a run that goes on from it is the calm one.
  for (const char* later : {"checkpoint-4", "checkpoint-6", "adapter"})
    fs::remove_all(run / later);
  const TrainResult rest = small.run(small.config("slow", saving));
  EXPECT_EQ(rest.resumed_from, 2);
  EXPECT_EQ(small.losses("slow"), small.losses("calm"));
  EXPECT_EQ(small.adapter_bytes("slow"), small.adapter_bytes("calm"));
}

/// Saves of one series; five of them are 500 at full scale.
int num_saves() {
  const char* scale = std::getenv("SHARDTUNE_TEST_SCALE");
  const int divisor = scale == nullptr ? 20 : std::max(std::atoi(scale), 1);
  return std::max(100 / divisor, 5);
}

std::string file_of(const fs::path& run, int step, const char* name) {
  return testing::read_text(run / ("checkpoint-" + std::to_string(step)) / name);
}

class AsyncSaveSeries : public ::testing::TestWithParam<int> {};

TEST_P(AsyncSaveSeries, EverySaveIsThatOfItsStepOnADiskOfAnySpeed) {
  const int steps = num_saves();
  const SmallRun small;
  const std::vector<std::string> common = {"training.max_steps=" + std::to_string(steps),
                                           "parallel.threads=1", "data.eval=[]"};
  // Stops after every step, so nothing runs beside a save.
  for (int step = 1; step <= steps; ++step) {
    auto stopping = common;
    stopping.push_back("training.stop_at_step=" + std::to_string(step));
    small.run(small.config("stopping", stopping));
  }
  const fs::path run = small.path("series");
  const CounterRng rng(mix_key(20, {static_cast<uint64_t>(GetParam())}));
  std::atomic<uint64_t> num_waits{0};
  std::atomic<int> under_way{0};
  std::atomic<int> most_under_way{0};
  const std::function<void()> delay = [&] {
    most_under_way = std::max(most_under_way.load(), ++under_way);
    // A save takes some fifteen of these, a step about a millisecond.
    std::this_thread::sleep_for(rng.uniform(num_waits++) * std::chrono::milliseconds(2));
    --under_way;
  };
  g_before_fsync = &delay;
  auto saving = common;
  saving.insert(saving.end(),
                {"checkpoint.save_steps=1",
                 "parallel.zero_optimization={stage: " + std::to_string(GetParam() % 4) + "}"});
  small.run(small.config("series", saving), 1 + GetParam() % 3);
  g_before_fsync = nullptr;

  EXPECT_EQ(most_under_way.load(), 1) << "one thread alone writes";
  EXPECT_EQ(small.losses("series"), small.losses("stopping"));
  for (int step = 1; step <= steps; ++step) {
    for (const char* name : {"adapter.safetensors", "optimizer.safetensors"})
      EXPECT_TRUE(file_of(run, step, name) == file_of(small.path("stopping"), step, name))
          << "step " << step << " " << name;
  }
  std::printf("report: %d saves beside training\n", steps);
}

INSTANTIATE_TEST_SUITE_P(Series, AsyncSaveSeries, ::testing::Range(0, 5));

}  // namespace
}  // namespace shardtune::trainer
