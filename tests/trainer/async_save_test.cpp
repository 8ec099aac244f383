// R20: training goes on while a checkpoint is written. fsync is held back until two more steps are
// done, which would never come if a step waited for the disk; the checkpoint still has the state of
// its own step, and a second save that comes early waits for the first.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

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
  small.run(small.config("calm", {"training.max_steps=6"}));
  const fs::path run = small.path("slow");
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
  small.run(small.config("slow", {"training.max_steps=6", "checkpoint.save_steps=2"}), 2);
  g_before_fsync = nullptr;
  EXPECT_GT(overlapped.load(), 0) << "no step ran during the save";
  EXPECT_EQ(small.losses("slow"), small.losses("calm"));
  EXPECT_EQ(small.adapter_bytes("slow"), small.adapter_bytes("calm"));

  // Step 2 was written while steps 3 and 4 ran; a run that goes on from it is the calm one.
  for (const char* later : {"checkpoint-4", "checkpoint-6", "adapter"})
    fs::remove_all(run / later);
  const TrainResult rest =
      small.run(small.config("slow", {"training.max_steps=6", "checkpoint.save_steps=2"}));
  EXPECT_EQ(rest.resumed_from, 2);
  EXPECT_EQ(small.losses("slow"), small.losses("calm"));
  EXPECT_EQ(small.adapter_bytes("slow"), small.adapter_bytes("calm"));
}

}  // namespace
}  // namespace shardtune::trainer
