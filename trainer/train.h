// The main job: fine-tuning by a configuration, on one process or on every rank of a communicator.
// The run directory (checkpoint.output_dir) gets resolved_config.yaml, train.log, metrics.jsonl,
// checkpoint-<step>/ and, at the end, adapter/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "parallel/communicator.h"
#include "trainer/config.h"
#include "trainer/state_swap.h"
#include "trainer/step_traffic.h"

namespace shardtune::trainer {

enum class ResumeMode {
  kAuto,   // from the newest checkpoint of output_dir that is whole, else from the start
  kNever,  // from the start; an earlier run in output_dir is moved to output_dir/previous-<n>
  kPath,   // from exactly this checkpoint folder
};

struct TrainOptions {
  ResumeMode resume = ResumeMode::kAuto;
  std::string resume_path;  // of kPath
  /// Program version, instruction set and library versions; all ranks must have the same.
  std::string identity;
  /// Stop after the checks and the plan: no weights loaded, nothing written.
  bool dry_run = false;
  /// Catch USR1, TERM and INT while training. Off for ranks that are threads of a test.
  bool catch_signals = true;
  /// How offloaded bytes are stored; tests choose other forms of it.
  SwapSettings swap;
};

struct TrainResult {
  /// kOk, or kCannotWrite: training ended well, but a checkpoint could not be saved on the way.
  ExitCode exit_code = ExitCode::kOk;
  double ready_seconds = 0.0;  // from the start of the process to the probe before the first step
  int64_t steps = 0;           // optimizer steps done, counted from the start of the run
  int64_t total_steps = 0;     // of the schedule
  int64_t resumed_from = -1;   // step of the checkpoint, -1 when from the start
  /// By rank: what it read of the checkpoint's tensors, the verification by rank 0 apart.
  std::vector<int64_t> rank_resume_bytes;
  bool finished = false;    // false: stopped by stop_at_step, or a dry run
  double final_loss = 0.0;  // of the last step
  double eval_loss = 0.0;   // of the last evaluation, when has_eval
  bool has_eval = false;
  double tokens_per_second = 0.0;  // mean over the steps of this process, without start-up
  int64_t peak_rss_bytes = 0;      // the largest of all ranks
  int64_t pool_peak_bytes = 0;     // of this process's buffer pool
  std::vector<int64_t> rank_peak_rss_bytes;  // by rank, beside what was predicted for it
  std::vector<int64_t> rank_predicted_bytes;
  /// Held between steps by each rank: base, adapters and optimizer states.
  std::vector<int64_t> rank_held_bytes;
  int64_t predicted_pool_bytes = 0;    // of rank 0
  StepTraffic step_traffic;            // of this rank, in the step with the most micro-batches
  StepTraffic predicted_step_traffic;  // of rank 0
  std::string adapter_folder;          // "" when not finished
};

/// "auto", "never" or a path, as --resume takes it.
void parse_resume(const std::string& text, TrainOptions& options);

/// Runs the job. Collective: every rank calls it with the same arguments.
/// Errors  PreemptedError: stopped by a signal after saving; NonFiniteError: NaN or infinity in
/// loss
///         or gradient, nothing updated; WriteError: output_dir cannot be written or is in use;
///         RankMismatchError: ranks of different config, version or machine; OutOfMemoryError:
///         predicted not to fit, nothing loaded; all those of inputs
TrainResult train(const RunConfig& config, parallel::Communicator& comm,
                  const TrainOptions& options);

}  // namespace shardtune::trainer
