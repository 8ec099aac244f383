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

/// Runs all of them on `ranks` ranks; a failure of any is a failure of the test.
inline void run_list(const SmallRun& small, int ranks, const std::vector<ListedRun>& runs) {
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
  const std::string backend = ranks == 1 ? "single" : "mpi+shm";
  // What ran is what was asked for.
  ASSERT_TRUE(text.ends_with(std::to_string(ranks) + " " + backend + " ranks\n")) << text;
}

}  // namespace shardtune::testing
