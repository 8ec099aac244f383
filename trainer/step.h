// One optimizer step, as data-parallel training with sharded states has it.
#pragma once

#include <cstdint>
#include <functional>

#include "trainer/job.h"
#include "trainer/limit.h"

namespace shardtune::trainer {

struct StepResult {
  double loss = 0.0;        // mean negative log-likelihood per trained token of the step
  double extra_loss = 0.0;  // of hook (7), on rank 0; `loss` is without it
  double grad_norm = 0.0;   // before clipping
  double learning_rate = 0.0;
  int64_t num_tokens = 0;
  int64_t num_trained_tokens = 0;
  int64_t num_micro_batches = 0;
  StepFlops flops;  // of all ranks
};

/// The base could not be read back from NVMe on some rank. Thrown on every rank: nothing was
/// updated meanwhile, the store serves what a checkpoint needs, and no unit is leased any more.
class UnreadableBase : public Error {
 public:
  using Error::Error;
};

/// Runs body, forward and backward of at most one micro-batch or a replay of its walk, on every
/// rank. Collective.
/// Errors  UnreadableBase; those of body, where the base is in memory
void run_walk(Job& job, const std::function<void()>& body);

/// Runs step `step`, counted from 0. Collective.
/// Errors  NonFiniteError on every rank: NaN or infinity in loss or gradient; nothing was updated;
///         UnreadableBase; those of OptimizerStates::step
StepResult train_step(Job& job, int64_t step);

/// Forward and backward of the longest micro-batch without an update, so that buffers get their
/// final size before the first step. Collective.
void probe_longest_micro_batch(Job& job, int64_t first_step);

/// NonFiniteError on every rank naming the first trainable that holds NaN or infinity. Collective.
void check_weights_finite(Job& job, int64_t step);

}  // namespace shardtune::trainer
