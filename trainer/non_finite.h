// A step whose loss or gradient is NaN or infinite stops the run before the update. This finds out
// where it came from: the loss names its token; for a gradient the micro-batches of the step, and
// then the samples of the first bad one, run again alone.
#pragma once

#include <cstdint>

#include "data/plan.h"
#include "trainer/job.h"

namespace shardtune::trainer {

/// The first token with a bad loss among this rank's micro-batches.
struct FirstNonFinite {
  int64_t micro_batch = -1;
  int64_t token = -1;

  void note(int64_t m, int64_t bad_token) {
    if (bad_token >= 0 && micro_batch < 0) {
      micro_batch = m;
      token = bad_token;
    }
  }
};

struct StepScale {
  int64_t step = 0;
  int64_t num_trained_tokens = 0;  // of the whole step
  /// Hook (7) is asked with micro-batch 0 of the step; not in a search for samples.
  enum class ExtraLoss { kWithFirst, kNone };
  ExtraLoss extra_loss = ExtraLoss::kWithFirst;
};

/// Forward and backward of one micro-batch; its gradients stand in the store as leaf m. At stage 3
/// the other ranks run one too, or replay one.
objectives::MicroBatchResult run_micro_batch(Job& job, const data::MicroBatchPlan& micro_batch,
                                             int64_t m, const StepScale& scale);

/// What a rank without a micro-batch does instead: its part of the other ranks' gathers.
void replay_micro_batch(Job& job);

/// Throws a NonFiniteError with the same message on every rank. Collective.
[[noreturn]] void throw_non_finite(Job& job, const data::StepPlan& plan, int64_t step,
                                   const FirstNonFinite& bad);

}  // namespace shardtune::trainer
