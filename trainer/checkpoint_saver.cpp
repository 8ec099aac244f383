#include "trainer/checkpoint_saver.h"

#include <chrono>
#include <memory>
#include <utility>

#include "core/error.h"
#include "trainer/collective.h"

namespace shardtune::trainer {

CheckpointSaver::CheckpointSaver(parallel::Communicator& comm, RunFolder& folder, int64_t limit)
    : comm_(comm), folder_(folder), limit_(limit) {}

void CheckpointSaver::start(int64_t step, Checkpoint snapshot) {
  SHARDTUNE_ASSERT(step_ < 0);
  // The vote: every rank lives and stands at the same step. What is written afterwards is whole
  // without the other ranks.
  if (comm_.all_reduce_min(step) != comm_.all_reduce_max(step))
    throw RankMismatchError("checkpoint: ranks stand at different steps.");
  step_ = step;
  if (comm_.rank() == 0)
    task_.start(
        [this, kept = std::make_shared<const Checkpoint>(std::move(snapshot))] { write(*kept); });
}

void CheckpointSaver::write(const Checkpoint& snapshot) {
  folder_.sync_metrics();
  write_partial_checkpoint(folder_.path(), snapshot);
  commit_checkpoint(folder_.path(), snapshot.step);
  rotate_checkpoints(folder_.path(), snapshot.step, limit_);
}

std::optional<SaveResult> CheckpointSaver::poll() {
  if (step_ < 0 || !comm_.any(comm_.rank() == 0 && !task_.running()))
    return std::nullopt;
  return finish();
}

std::optional<SaveResult> CheckpointSaver::finish() {
  if (step_ < 0)
    return std::nullopt;
  SaveResult result{std::exchange(step_, -1), ""};
  try {
    run_on_rank_zero(comm_, [&] {
      // A slow disk is no lost rank: the others' deadlines see that this one lives.
      while (task_.running(std::chrono::seconds(1)))
        comm_.note_progress({});
      task_.wait();
      return std::string();
    });
  } catch (const Error& error) {
    if (error.exit_code() != ExitCode::kCannotWrite)
      throw;
    result.write_error = error.what();
  }
  return result;
}

}  // namespace shardtune::trainer
