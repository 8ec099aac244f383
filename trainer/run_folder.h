// The run directory while a run uses it: the lock against a second run, the check that all ranks
// see one file system, and metrics.jsonl.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "parallel/communicator.h"

namespace shardtune::trainer {

namespace fs = std::filesystem;

/// TensorBoard events, in the run directory.
inline constexpr const char* kEventsFolder = "tensorboard";

class RunFolder {
 public:
  /// Creates and locks the folder. Collective.
  /// Errors  WriteError: not writable, in use by another run, not the same folder on all ranks
  RunFolder(parallel::Communicator& comm, const fs::path& folder);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const fs::path& path() const { return path_; }

  /// Moves the checkpoints, metrics and adapter of an earlier run to previous-<n>; its path, or ""
  /// when there was none. Rank 0.
  fs::path set_aside_previous_run();

  /// Opens metrics.jsonl, keeping the lines up to this step. Rank 0.
  void open_metrics(int64_t last_step);
  /// Appends one line. A failure is a WriteError. Rank 0.
  void append_metrics(const std::string& line);
  /// Makes the lines durable. Rank 0.
  void sync_metrics();

 private:
  void lock();
  void check_one_file_system(parallel::Communicator& comm);

  fs::path path_;
  int lock_ = -1;
  int metrics_ = -1;
};

/// The lines of metrics.jsonl whose step is at most last_step; a torn last line is dropped.
std::string cut_metrics(std::string_view text, int64_t last_step);

}  // namespace shardtune::trainer
