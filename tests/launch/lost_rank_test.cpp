// R27, R28 with the program: a rank of a training that is killed or stopped ends the run with code
// 70, a message of the rank that is left and no save; nothing stays behind.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using Clock = std::chrono::steady_clock;

/// Processes of the program whose command line holds `word`, of one rank or (-1) of all.
std::vector<pid_t> processes_of(const std::string& word, int rank) {
  std::vector<pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos)
      continue;
    const std::string line = read_text(entry.path() / "cmdline");
    if (!line.starts_with(SHARDTUNE_PROGRAM) || line.find(word) == std::string::npos)
      continue;
    const std::string variable = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
    if (rank < 0 || read_text(entry.path() / "environ").find(variable) != std::string::npos)
      found.push_back(static_cast<pid_t>(std::stol(name)));
  }
  return found;
}

class LosesARank : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (folder_.shell("command -v mpirun").code != 0)
      GTEST_SKIP() << "mpirun is not there";
  }

  /// Trains on two ranks; `rank` gets the signal when it is in its steps.
  Outcome lose(int rank, int signal) {
    const std::string word = "lost-" + std::to_string(getpid());
    Outcome outcome;
    std::thread run([&] {
      outcome = folder_.shell("SHARDTUNE_BINARY=$st " + std::string(SHARDTUNE_SOURCE_DIR) +
                              "/launch/run -n 2 train run.yaml --set training.max_steps=100000"
                              " --set parallel.heartbeat_seconds=1"
                              " --set checkpoint.output_dir=" +
                              word);
    });
    const fs::path metrics = folder_.path(word) / "metrics.jsonl";
    for (int i = 0; i < 3000 && std::ranges::count(read_text(metrics), '\n') < 3; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const auto victims = processes_of(word, rank);
    EXPECT_EQ(victims.size(), 1u);
    const auto start = Clock::now();
    for (const pid_t process : victims)
      kill(process, signal);
    run.join();
    seconds_ = std::chrono::duration<double>(Clock::now() - start).count();
    EXPECT_EQ(processes_of(word, -1), std::vector<pid_t>());
    for (const auto& entry : fs::directory_iterator(folder_.path(word)))
      EXPECT_FALSE(entry.path().filename().string().starts_with("checkpoint-")) << entry.path();
    return outcome;
  }

  void expect_message(const Outcome& outcome, int lost, const std::string& reason) const {
    const std::string left = "shardtune: error: [rank " + std::to_string(1 - lost) + "/2] ";
    const size_t at = outcome.err.find(left);
    ASSERT_NE(at, std::string::npos) << outcome.err;
    const std::string line = outcome.err.substr(at, outcome.err.find('\n', at) - at);
    EXPECT_NE(line.find("rank " + std::to_string(lost) + " on host "), std::string::npos) << line;
    EXPECT_NE(line.find(reason), std::string::npos) << line;
    EXPECT_NE(line.find("step"), std::string::npos) << line;
    EXPECT_NE(line.find("(#"), std::string::npos) << line;
  }

  ProgramFolder folder_;
  double seconds_ = 0.0;
};

TEST_P(LosesARank, KilledEndsTheRunWithCode70) {
  const Outcome outcome = lose(GetParam(), SIGKILL);
  EXPECT_EQ(outcome.code, 70) << outcome.err;
  expect_message(outcome, GetParam(), "its connection closed");
  EXPECT_LT(seconds_, 15.0);
}

TEST_P(LosesARank, StoppedEndsTheRunWithCode70) {
  const Outcome outcome = lose(GetParam(), SIGSTOP);
  EXPECT_EQ(outcome.code, 70) << outcome.err;
  expect_message(outcome, GetParam(), "no heartbeat for");
  EXPECT_LT(seconds_, 20.0);
}

INSTANTIATE_TEST_SUITE_P(Rank, LosesARank, ::testing::Values(0, 1));

}  // namespace
}  // namespace shardtune::launch
