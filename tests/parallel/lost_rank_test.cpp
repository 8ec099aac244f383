// R27, R28: a rank that is killed, stops or hangs inside a collective ends the job on all ranks,
// with a message of each rank that is left, and nothing stays behind. Times are bounded because the
// claim is a deadline. SHARDTUNE_TEST_SCALE divides the number of cases; 1 takes all
// (tests/long.sh).
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
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
  double seconds = 0.0;  // from the loss to the end of the job
  int num_left = 0;      // ranks that left by themselves
  std::string text;
};

int test_scale() {
  const char* scale = std::getenv("SHARDTUNE_TEST_SCALE");
  return scale == nullptr ? 20 : std::max(1, std::atoi(scale));
}

double now_seconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

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
  const std::string path = (fs::temp_directory_path() / word).string();
  const std::string command = "SHARDTUNE_TRANSPORT=" + job.transport +
                              " mpirun --oversubscribe --allow-run-as-root --quiet -n " +
                              std::to_string(job.ranks) + " " SHARDTUNE_LOST_RANK " " + job.action +
                              " " + job.call + " " + job.phase + " " + path + " >" + path +
                              ".txt 2>&1 </dev/null";
  const int status = std::system(command.c_str());
  const double end = now_seconds();
  Result result;
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  result.text = read_text(path + ".txt");
  result.seconds = end - std::atof(read_text(path + ".at").c_str());
  const std::string left = read_text(path + ".left");
  result.num_left = static_cast<int>(std::ranges::count(left, '\n'));
  for (const char* name : {".txt", ".at", ".left"})
    fs::remove(path + name);
  EXPECT_EQ(processes_of(word), 0) << "a process was left behind";
  EXPECT_EQ(shared_memory_files(), std::set<std::string>()) << "/dev/shm";
  return result;
}

/// Ranks whose line tells of the loss: who and where, why, the step and the own call.
int survivors(const std::string& text, const Job& job, const std::string& reason,
              const std::string& step, const std::string& call) {
  std::set<std::string> ranks;
  std::istringstream lines(text);
  const std::string lost = "rank " + std::to_string(job.ranks - 1) + " on host ";
  for (std::string line; std::getline(lines, line);) {
    const size_t rank = line.find("[rank ");
    const bool tells = rank != std::string::npos && line.find(lost) != std::string::npos &&
                       line.find(reason) != std::string::npos &&
                       line.find(step) != std::string::npos &&
                       line.find(call + "(#") != std::string::npos;
    if (tells)
      ranks.insert(line.substr(rank, line.find(']', rank) - rank));
  }
  return static_cast<int>(ranks.size());
}

class LostRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("command -v mpirun >/dev/null") != 0)
      GTEST_SKIP() << "mpirun is not there";
  }
};

struct Call {
  const char* name;
  const char* shown;  // as messages name it
};
constexpr std::array<Call, 12> kCalls{{{"barrier", "barrier"},
                                       {"broadcast", "broadcast"},
                                       {"all_gather", "all_gather"},
                                       {"all_gather_blocks", "all_gather_blocks"},
                                       {"exchange", "exchange"},
                                       {"all_gather_value", "all_gather"},
                                       {"all_gather_bytes", "all_gather"},
                                       {"all_gather_strings", "all_gather"},
                                       {"all_reduce_max", "all_gather"},
                                       {"all_reduce_min", "all_gather"},
                                       {"all_reduce_sum", "all_gather"},
                                       {"check_same_on_all_ranks", "all_gather"}}};

class KilledRank : public LostRanks, public ::testing::WithParamInterface<int> {};

// R27: a rank is killed before, inside and after each of twelve collectives.
TEST_P(KilledRank, IsFoundByAllInEveryCall) {
  const int ranks = GetParam();
  double slowest = 0.0;
  int num_cases = 0;
  int index = ranks;
  for (const Call& call : kCalls) {
    for (const std::string phase : {"before", "inside", "after"}) {
      if (index++ % test_scale() != 0)
        continue;
      const Job job{ranks, "kill", call.name, phase};
      const Result result = run(job);
      const std::string name = std::string(call.name) + ", " + phase;
      // After a call the others are in the next one, perhaps of the next step.
      const bool after = phase == "after";
      EXPECT_EQ(survivors(result.text, job, "its connection closed", after ? "step" : "at step 17",
                          after ? "" : call.shown),
                ranks - 1)
          << name << "\n"
          << result.text;
      EXPECT_EQ(result.num_left, ranks - 1) << name << "\n" << result.text;
      EXPECT_NE(result.code, 0) << name;
      EXPECT_LT(result.seconds, 5.0) << name;
      slowest = std::max(slowest, result.seconds);
      ++num_cases;
    }
  }
  std::printf("%d cases on %d ranks; the slowest job ended %.2f s after the kill\n", num_cases,
              ranks, slowest);
}

INSTANTIATE_TEST_SUITE_P(Of, KilledRank, ::testing::Values(2, 4, 8));

TEST_F(LostRanks, AKilledOneIsFoundOverMpiAlone) {
  const Job job{2, "kill", "exchange", "inside", "mpi"};
  const Result result = run(job);
  EXPECT_EQ(survivors(result.text, job, "its connection closed", "at step 17", "exchange"), 1)
      << result.text;
}

TEST_F(LostRanks, AStoppedOneIsFoundAndKilled) {
  for (const int ranks : {2, 4}) {
    const Job job{ranks, "stop", "all_gather", "before"};
    const Result result = run(job);
    EXPECT_EQ(survivors(result.text, job, "no heartbeat for", "at step 17", "all_gather"),
              ranks - 1)
        << result.text;
    EXPECT_LT(result.seconds, 20.0);
  }
}

TEST_F(LostRanks, ABusyLoopIsFoundByAllAndLeavesToo) {
  const Job job{2, "loop", "exchange", "before"};
  const Result result = run(job);
  // The rank that hangs has a thread that lives: it tells of itself, and ends.
  EXPECT_EQ(survivors(result.text, job, "no progress for", "at step 17", ""), 2) << result.text;
  EXPECT_EQ(result.code, 70) << result.text;
  EXPECT_LT(result.seconds, 20.0);
}

TEST_F(LostRanks, AShortPauseIsForgiven) {
  const Result result = run({4, "pause", "all_gather", "before"});
  EXPECT_EQ(result.code, 0) << result.text;
  EXPECT_NE(result.text.find("done"), std::string::npos) << result.text;
}

// R28: pauses of 5 s under the heartbeat of 10 s, in 1,000 steps at full scale.
TEST_F(LostRanks, PausesOfFiveSecondsAreForgiven) {
  const int steps = std::max(50, 1000 / test_scale());
  const Result result = run({4, "soak", std::to_string(steps), "0"});
  EXPECT_EQ(result.code, 0) << result.text;
  EXPECT_NE(result.text.find("done"), std::string::npos) << result.text;
}

}  // namespace
}  // namespace shardtune::parallel
