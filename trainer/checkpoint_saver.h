// Saving beside training: the ranks hand over a snapshot and go on, rank 0 writes it on a thread of
// its own. A step waits for the copy alone; the write, its fsyncs and the rename cost no step.
// Never two at once: a save that comes early waits for the one before.
#pragma once

#include <optional>
#include <string>

#include "parallel/background_task.h"
#include "parallel/communicator.h"
#include "trainer/checkpoint.h"
#include "trainer/run_folder.h"

namespace shardtune::trainer {

/// How a save ended, the same on every rank.
struct SaveResult {
  int64_t step = 0;
  std::string write_error;  // "" when the checkpoint is committed
};

class CheckpointSaver {
 public:
  /// Keeps `limit` checkpoints (0 = all).
  CheckpointSaver(parallel::Communicator& comm, RunFolder& folder, int64_t limit);

  /// Starts to save; only rank 0's snapshot counts. Expects that nothing is under way. Collective.
  /// RankMismatchError: ranks stand at different steps.
  void start(int64_t step, Checkpoint snapshot);
  /// At the edge of a step: the result of a save that has ended meanwhile. Collective.
  /// Errors  what stopped the save other than a WriteError, on every rank
  std::optional<SaveResult> poll();
  /// The same, waiting for its end; nothing when no save is under way. Collective.
  std::optional<SaveResult> finish();

  /// Step that is being saved, or -1. The same on all ranks.
  int64_t step_under_way() const { return step_; }

 private:
  void write(const Checkpoint& snapshot);

  parallel::Communicator& comm_;
  RunFolder& folder_;
  int64_t limit_;
  int64_t step_ = -1;
  parallel::BackgroundTask task_;  // last: its end is waited for before anything else dies
};

}  // namespace shardtune::trainer
