// The steps of a run: train, log, evaluate, save, and stop where the ranks agree to stop.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "trainer/checkpoint_saver.h"
#include "trainer/energy.h"
#include "trainer/event_file.h"
#include "trainer/job.h"
#include "trainer/metrics.h"
#include "trainer/run_folder.h"
#include "trainer/step.h"
#include "trainer/train.h"

namespace shardtune::trainer {

class Loop {
 public:
  /// `first_step` steps are done already (a resume). `signal` tells the signal received so far.
  Loop(Job& job, RunFolder& folder, const TrainOptions& options, int64_t first_step);

  /// Runs to job.last_step. PreemptedError after saving when a signal came. Collective.
  void run(const std::function<int()>& signal);

  const TrainResult& result() const { return result_; }
  TrainResult& result() { return result_; }
  /// Evaluates when there is an evaluation set; the last result counts. Collective.
  void evaluate();
  /// Starts to save the state after `step` steps; training may go on. Collective.
  void save(int64_t step);
  /// Waits for a save under way. A failure to write is a warning. Collective.
  void finish_save();

 private:
  /// train_step(); without a base, saves what the steps before it made and ends. Collective.
  StepMetrics run_step(int64_t step);
  /// The state after `step` is whole, but the run cannot go on. Collective.
  [[noreturn]] void save_and_end(int64_t step, const UnreadableBase& error);
  StepTraffic traffic() const;
  /// Of the machine's limit and energy. Collective.
  void begin_measuring();
  /// Energy so far of this host, from its first rank; 0 from the others, NaN without a counter.
  double joules();
  /// A line of metrics.jsonl. Collective.
  void log(StepMetrics metrics);
  /// The step's line and events. WriteError. Rank 0.
  void write_records(const StepMetrics& metrics);
  void stop_if_asked(int64_t step, const std::function<int()>& signal);
  void note_write_failure(const std::string& what);
  void take_save(const std::optional<SaveResult>& result);
  Checkpoint collect(int64_t step);

  Job& job_;
  RunFolder& folder_;
  const TrainOptions& options_;
  int64_t first_step_;
  int64_t saved_step_;  // newest step that a resume would find
  CheckpointSaver saver_;
  TrainResult result_;
  double compute_rate_ = 0.0;         // of all ranks, see trainer/limit.h
  std::optional<EventFile> events_;   // of rank 0, with logging.tensorboard
  std::optional<EnergyMeter> meter_;  // of a host's first rank
  int64_t most_micro_batches_ = 0;
};

}  // namespace shardtune::trainer
