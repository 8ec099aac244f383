// Many trainings of the tiny model on real ranks: one process for one rank, mpirun for more, each
// started once for a whole list (run_list_main.cpp).
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "tests/trainer/small_run.h"

namespace shardtune::testing {

inline bool has_mpirun() { return std::system("command -v mpirun >/dev/null") == 0; }

/// "parallel.zero_optimization..." as --set takes it.
inline std::string zero_stage(int stage) {
  return "parallel.zero_optimization.stage=" + std::to_string(stage);
}
/// Optimizer states and frozen base on NVMe, in the folder of the runs.
inline std::vector<std::string> everything_on_nvme(const SmallRun& small) {
  std::vector<std::string> overrides;
  for (const char* what : {"offload_optimizer", "offload_param"})
    overrides.push_back(std::string("parallel.zero_optimization.") + what +
                        "={device: nvme, nvme_path: \"" + small.path("").string() + "\"}");
  return overrides;
}

/// One training: where it writes, and what differs from SmallRun's configuration.
struct ListedRun {
  std::string output;
  std::vector<std::string> overrides;
};

/// Where every run of a list must have begun.
enum class Start { kAtTheBeginning, kFromStep2 };

/// Runs all of them on `ranks` ranks; a failure of any is a failure of the test.
inline void run_list(const SmallRun& small, int ranks, const std::vector<ListedRun>& runs,
                     Start start = Start::kAtTheBeginning) {
  std::string list;
  for (const ListedRun& run : runs) {
    list += "checkpoint.output_dir=" + small.path(run.output).string();
    for (const std::string& key : run.overrides)
      list += "\t" + key;
    list += "\n";
  }
  const fs::path config = small.path("list.yaml");
  const fs::path file = small.path("list.txt");
  const fs::path out = small.path("list.out");
  write_text(config, small.config_text("run"));
  write_text(file, list);
  const std::string launcher =
      ranks == 1 ? ""
                 : "mpirun --oversubscribe --allow-run-as-root --bind-to none -n " +
                       std::to_string(ranks) + " ";
  // Threads that wait give the core back soon, as launch/run arranges it.
  const std::string command = "OMP_NUM_THREADS=1 GOMP_SPINCOUNT=10000 " + launcher +
                              SHARDTUNE_RUN_LIST + " " + config.string() + " " + file.string() +
                              " >" + out.string() + " 2>&1 </dev/null";
  const int status = std::system(command.c_str());
  const std::string text = read_text(out);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << text;
  // What ran is what was asked for.
  std::string expected;
  for (size_t i = 0; i < runs.size(); ++i)
    expected += start == Start::kFromStep2 ? "from step 2\n" : "from step -1\n";
  expected += std::to_string(ranks) + (ranks == 1 ? " single" : " mpi+shm") + " ranks\n";
  ASSERT_EQ(text, expected);
}

}  // namespace shardtune::testing
