// R13: kill -9 at random instants of a run that saves at every step, alone and on two ranks. No
// committed checkpoint is ever lost or damaged, and the run that goes on to its end has the bits of
// one that nobody killed.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "core/rng.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using Clock = std::chrono::steady_clock;

// Ends every process of the program whose command line holds `word`; says how many it found.
int kill_program(const std::string& word) {
  int killed = 0;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos)
      continue;
    const std::string line = read_text(entry.path() / "cmdline");  // empty: gone meanwhile
    if (line.starts_with(SHARDTUNE_PROGRAM) && line.find(word) != std::string::npos &&
        kill(static_cast<pid_t>(std::stol(name)), SIGKILL) == 0)
      ++killed;
  }
  return killed;
}

/// Step of the newest committed checkpoint, 0 when there is none.
int64_t newest_checkpoint(const fs::path& run) {
  int64_t newest = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run, error)) {
    const std::string name = entry.path().filename().string();
    constexpr std::string_view kPrefix = "checkpoint-";
    if (name.starts_with(kPrefix) && name.find('.') == std::string::npos)
      newest = std::max<int64_t>(newest, std::stol(name.substr(kPrefix.size())));
  }
  return newest;
}

int64_t num_kills() {
  const char* scale = std::getenv("SHARDTUNE_TEST_SCALE");
  const int64_t divisor = scale == nullptr ? 20 : std::max(std::atoi(scale), 1);
  return std::max<int64_t>(100 / divisor, 5);
}

class KillTest : public ::testing::TestWithParam<int> {
 protected:
  std::string command(const std::string& output_dir) const {
    const std::string train =
        "train run.yaml --set training.max_steps=12 --set checkpoint.save_steps=1"
        " --set checkpoint.save_total_limit=2 --set checkpoint.output_dir=" +
        output_dir;
    if (GetParam() == 1)
      return "$st " + train;
    return "SHARDTUNE_BINARY=$st " + std::string(SHARDTUNE_SOURCE_DIR) + "/launch/run -n " +
           std::to_string(GetParam()) + " " + train;
  }
  ProgramFolder folder_;
};

TEST_P(KillTest, LosesNothingThatWasCommitted) {
  if (GetParam() > 1 && folder_.shell("command -v mpirun").code != 0)
    GTEST_SKIP() << "mpirun is not there";
  const auto start = Clock::now();
  ASSERT_EQ(folder_.shell(command("calm")).code, 0);
  const std::chrono::duration<double> calm = Clock::now() - start;

  const CounterRng rng(mix_key(13, {static_cast<uint64_t>(GetParam())}));
  const std::string word = "killed-" + std::to_string(getpid());
  int64_t committed = 0;
  int64_t kills = 0;
  for (uint64_t round = 0; kills < num_kills(); ++round) {
    ASSERT_LT(round, 200u) << "runs end before they can be killed";
    if (fs::exists(folder_.path(word + "/adapter"))) {  // finished in spite of us: once more
      fs::remove_all(folder_.path(word));
      committed = 0;
    }
    std::thread run([&] { folder_.shell(command(word)); });
    std::this_thread::sleep_for(rng.uniform(round) * calm);
    kills += kill_program(word) > 0 ? 1 : 0;
    run.join();
    const int64_t newest = newest_checkpoint(folder_.path(word));
    ASSERT_GE(newest, committed) << "a committed checkpoint is gone, round " << round;
    committed = newest;
    if (newest > 0) {
      const Outcome inspected =
          folder_.run("inspect " + word + "/checkpoint-" + std::to_string(newest));
      ASSERT_EQ(inspected.code, 0) << inspected.err;
    }
  }
  const Outcome last = folder_.shell(command(word));
  ASSERT_EQ(last.code, 0) << last.err;
  EXPECT_EQ(read_text(folder_.path(word + "/adapter/adapter_model.safetensors")),
            read_text(folder_.path("calm/adapter/adapter_model.safetensors")));
  EXPECT_FALSE(fs::exists(folder_.path(word + "/checkpoint-12.partial")));
}

INSTANTIATE_TEST_SUITE_P(Ranks, KillTest, ::testing::Values(1, 2));

}  // namespace
}  // namespace shardtune::launch
