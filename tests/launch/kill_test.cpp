// R13: kill -9 at random instants of a run that saves at every step beside its training, on 1 to 4
// ranks. All ranks are killed or one of them, and every start has a stage of its own, with
// everything in memory or on NVMe. No committed checkpoint is ever lost or damaged, and the run
// that goes on to its end has the bits of one rank at stage 0 that nobody killed.
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "core/rng.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using Clock = std::chrono::steady_clock;

/// Processes of the program whose command line holds `word`.
std::vector<pid_t> processes_of(const std::string& word) {
  std::vector<pid_t> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos)
      continue;
    const std::string line = read_text(entry.path() / "cmdline");  // empty: gone meanwhile
    if (line.starts_with(SHARDTUNE_PROGRAM) && line.find(word) != std::string::npos)
      found.push_back(static_cast<pid_t>(std::stol(name)));
  }
  return found;
}

/// True when a save or the removal of an old checkpoint was under way.
bool was_saving(const fs::path& run) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("checkpoint-") && name.find('.') != std::string::npos)
      return true;
  }
  return false;
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

/// 200 in all at full scale.
int64_t num_kills() {
  const char* scale = std::getenv("SHARDTUNE_TEST_SCALE");
  const int64_t divisor = scale == nullptr ? 20 : std::max(std::atoi(scale), 1);
  return std::max<int64_t>(50 / divisor, 3);
}

/// How a run is started; a checkpoint of one goes on in any other.
struct Start {
  int ranks = 1;
  int stage = 0;
  bool is_on_nvme = false;
};

class KillTest : public ::testing::TestWithParam<int> {
 protected:
  static std::string command(const Start& start, const std::string& output_dir) {
    std::string train =
        "train run.yaml --set training.max_steps=12 --set checkpoint.save_steps=1"
        " --set checkpoint.save_total_limit=2 --set checkpoint.output_dir=" +
        output_dir + " --set parallel.zero_optimization.stage=" + std::to_string(start.stage);
    for (const std::string key : {"offload_optimizer", "offload_param"}) {
      if (start.is_on_nvme)
        train += " --set " + testing::quoted("parallel.zero_optimization." + key +
                                             "={device: nvme, nvme_path: .}");
    }
    if (start.ranks == 1)
      return "$st " + train;
    return "SHARDTUNE_BINARY=$st " + std::string(SHARDTUNE_SOURCE_DIR) + "/launch/run -n " +
           std::to_string(start.ranks) + " " + train;
  }
  Start start_of(uint64_t round) const {
    return {GetParam(), static_cast<int>(rng_.below(2000 + round, 4)), round % 4 >= 2};
  }

  /// Kills what runs in `word`: every rank, or in odd rounds one of them, so that the others must
  /// leave by themselves. False when nothing ran.
  bool kill_some(const std::string& word, uint64_t round) const {
    const std::vector<pid_t> running = processes_of(word);
    if (running.empty())
      return false;
    const auto one =
        static_cast<size_t>(rng_.uniform(1000 + round) * static_cast<double>(running.size()));
    bool killed = false;
    for (size_t i = 0; i < running.size(); ++i) {
      if (round % 2 == 0 || i == one)
        killed |= kill(running[i], SIGKILL) == 0;
    }
    return killed;
  }

  /// A random instant of a run that takes `time`: anywhere in it, or soon after its first save
  /// began, since the start takes longer than all saves together.
  void wait_for_the_instant(uint64_t round, const std::string& word,
                            std::chrono::duration<double> time) const {
    const double uniform = rng_.uniform(round);
    if (round % 3 == 0) {
      std::this_thread::sleep_for(uniform * time);
      return;
    }
    const auto end = Clock::now() + 2 * time;
    while (!was_saving(folder_.path(word)) && Clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(uniform * std::chrono::milliseconds(300));
  }

  ProgramFolder folder_;
  CounterRng rng_{mix_key(13, {static_cast<uint64_t>(GetParam())})};
};

TEST_P(KillTest, LosesNothingThatWasCommitted) {
  if (GetParam() > 1 && folder_.shell("command -v mpirun").code != 0)
    GTEST_SKIP() << "mpirun is not there";
  ASSERT_EQ(folder_.shell(command({}, "calm")).code, 0);
  const auto begin = Clock::now();
  ASSERT_EQ(folder_.shell(command({GetParam(), 1, true}, "timed")).code, 0);
  const std::chrono::duration<double> time = Clock::now() - begin;

  const std::string word = "killed-" + std::to_string(getpid());
  int64_t committed = 0;
  int64_t kills = 0;
  int64_t kills_while_saving = 0;
  for (uint64_t round = 0; kills < num_kills(); ++round) {
    ASSERT_LT(round, 500u) << "runs end before they can be killed";
    if (fs::exists(folder_.path(word + "/adapter"))) {  // finished in spite of us: once more
      fs::remove_all(folder_.path(word));
      committed = 0;
    }
    std::thread run([&] { folder_.shell(command(start_of(round), word)); });
    wait_for_the_instant(round, word, time);
    const bool killed = kill_some(word, round);
    run.join();
    kills += killed ? 1 : 0;
    kills_while_saving += killed && was_saving(folder_.path(word)) ? 1 : 0;
    const int64_t newest = newest_checkpoint(folder_.path(word));
    ASSERT_GE(newest, committed) << "a committed checkpoint is gone, round " << round;
    committed = newest;
    if (newest > 0) {
      const Outcome inspected =
          folder_.run("inspect " + word + "/checkpoint-" + std::to_string(newest));
      ASSERT_EQ(inspected.code, 0) << inspected.err;
    }
  }
  std::printf("report: %d ranks: %lld kills, %lld of them while a checkpoint was written\n",
              GetParam(), static_cast<long long>(kills),
              static_cast<long long>(kills_while_saving));
  const Outcome last = folder_.shell(command({GetParam(), 2, false}, word));
  ASSERT_EQ(last.code, 0) << last.err;
  EXPECT_EQ(read_text(folder_.path(word + "/adapter/adapter_model.safetensors")),
            read_text(folder_.path("calm/adapter/adapter_model.safetensors")));
  EXPECT_FALSE(was_saving(folder_.path(word)));
}

INSTANTIATE_TEST_SUITE_P(Ranks, KillTest, ::testing::Range(1, 5));

}  // namespace
}  // namespace shardtune::launch
