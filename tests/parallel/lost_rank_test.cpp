// R27, R28: a rank that is killed, stops or hangs inside a collective ends the job on all ranks,
// with a message of each rank that is left, and nothing stays behind. Times are bounded because the
// claim is a deadline; the bounds are wide.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace shardtune::parallel {
namespace {

namespace fs = std::filesystem;

struct Job {
  int ranks = 2;
  std::string action = "kill";
  std::string call = "all_gather";
  std::string phase = "before";
  std::string transport = "auto";
};

struct Result {
  int code = -1;
  double seconds = 0.0;
  std::string text;
};

std::string read_text(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::string unique_word() {
  static int number = 0;
  return "lost-rank-" + std::to_string(getpid()) + "-" + std::to_string(++number);
}

/// Processes whose command line holds the word and that are not dead already.
int processes_of(const std::string& word) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    if (read_text(entry.path() / "cmdline").find(word) != std::string::npos &&
        read_text(entry.path() / "stat").find(") Z ") == std::string::npos)
      ++count;
  }
  return count;
}

/// Names that ours have in /dev/shm; other jobs of the machine may have others.
std::set<std::string> shared_memory_files() {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/dev/shm", error)) {
    if (entry.path().filename().string().find("shardtune") != std::string::npos)
      names.insert(entry.path().filename());
  }
  return names;
}

Result run(const Job& job) {
  const std::string word = unique_word();
  const fs::path output = fs::temp_directory_path() / (word + ".txt");
  const std::string command = "SHARDTUNE_TRANSPORT=" + job.transport +
                              " mpirun --oversubscribe --allow-run-as-root --quiet -n " +
                              std::to_string(job.ranks) + " " SHARDTUNE_LOST_RANK " " + job.action +
                              " " + job.call + " " + job.phase + " " + word + " >" +
                              output.string() + " 2>&1 </dev/null";
  const auto start = std::chrono::steady_clock::now();
  const int status = std::system(command.c_str());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  Result result{WIFEXITED(status) ? WEXITSTATUS(status) : -1, elapsed.count(), read_text(output)};
  fs::remove(output);
  EXPECT_EQ(processes_of(word), 0) << "a process was left behind";
  EXPECT_EQ(shared_memory_files(), std::set<std::string>()) << "/dev/shm";
  return result;
}

/// Lines that tell of the loss, each from another rank.
int survivors(const std::string& text, const Job& job, const std::string& reason) {
  std::set<std::string> ranks;
  std::istringstream lines(text);
  const std::string lost = "rank " + std::to_string(job.ranks - 1) + " on host ";
  for (std::string line; std::getline(lines, line);) {
    const size_t rank = line.find("[rank ");
    if (rank == std::string::npos || line.find(lost) == std::string::npos ||
        line.find(reason) == std::string::npos || line.find("at step 17") == std::string::npos ||
        line.find("(#") == std::string::npos)
      continue;
    ranks.insert(line.substr(rank, line.find(']', rank) - rank));
  }
  return static_cast<int>(ranks.size());
}

class LostRank : public ::testing::TestWithParam<Job> {
 protected:
  void SetUp() override {
    if (std::system("command -v mpirun >/dev/null") != 0)
      GTEST_SKIP() << "mpirun is not there";
  }
};

TEST_P(LostRank, KilledIsFoundByAll) {
  const Job& job = GetParam();
  const Result result = run(job);
  EXPECT_EQ(survivors(result.text, job, "its connection closed"), job.ranks - 1) << result.text;
  EXPECT_NE(result.code, 0);
  EXPECT_LT(result.seconds, 15.0);
}

INSTANTIATE_TEST_SUITE_P(Calls, LostRank,
                         ::testing::Values(Job{2, "kill", "barrier", "before"},
                                           Job{4, "kill", "broadcast", "inside"},
                                           Job{2, "kill", "all_gather", "inside"},
                                           Job{4, "kill", "exchange", "inside"},
                                           Job{4, "kill", "all_gather", "after"},
                                           Job{2, "kill", "exchange", "inside", "mpi"}),
                         [](const ::testing::TestParamInfo<Job>& info) {
                           const Job& job = info.param;
                           return job.call + "_" + job.phase + "_" + std::to_string(job.ranks) +
                                  "ranks_" + job.transport;
                         });

class LostRanks : public LostRank {};

TEST_F(LostRanks, AStoppedOneIsFoundAndKilled) {
  for (const int ranks : {2, 4}) {
    const Job job{ranks, "stop", "all_gather", "before"};
    const Result result = run(job);
    EXPECT_EQ(survivors(result.text, job, "no heartbeat for"), ranks - 1) << result.text;
    EXPECT_LT(result.seconds, 20.0);
  }
}

TEST_F(LostRanks, ABusyLoopIsFoundByAllAndLeavesToo) {
  const Job job{2, "loop", "exchange", "before"};
  const Result result = run(job);
  // The rank that hangs has a thread that lives: it tells of itself, and ends.
  EXPECT_EQ(survivors(result.text, job, "no progress for"), 2) << result.text;
  EXPECT_EQ(result.code, 70) << result.text;
  EXPECT_LT(result.seconds, 20.0);
}

TEST_F(LostRanks, AShortPauseIsForgiven) {
  const Result result = run({4, "pause", "all_gather", "before"});
  EXPECT_EQ(result.code, 0) << result.text;
  EXPECT_NE(result.text.find("done"), std::string::npos) << result.text;
}

}  // namespace
}  // namespace shardtune::parallel
