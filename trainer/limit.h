// How fast a step could be on this machine: the operations that LoRA-like training cannot do
// without, at the speed of the machine's matrix products. P weights of frozen linears, A trained
// weights, T tokens, V x H head, S tokens of a sample, d width of the heads, L layers:
//   linears 4PT (forward, gradient of the input), adapters 6AT, head 4VH per trained token,
//   attention 2S(S+1)dL a sample forward and 2.5 times that back (scores are computed again);
//   gradient_checkpointing: linears, adapters and attention once more forward.
//   compute_dtype int8 with AVX512-VNNI: linears half, for it multiplies twice as many pairs.
// Norms, activations, decoding of quantised weights, sums and communication count nothing, so no
// run reaches it.
#pragma once

#include "core/dtype.h"
#include "data/plan.h"
#include "trainer/job.h"

namespace shardtune::trainer {

struct StepFlops {
  double linears = 0.0;
  double adapters = 0.0;
  double attention = 0.0;
  double head = 0.0;
  double sum() const { return linears + adapters + attention + head; }
};

/// Of one step on all ranks together. After load().
StepFlops step_flops(const Job& job, const data::StepPlan& plan);

/// Operations per second of all ranks together, measured now: some 40 ms. The log tells it, and the
/// tokens per second that step `first_step` could reach. Collective.
double measure_compute_rate(const Job& job, int64_t first_step);

}  // namespace shardtune::trainer
