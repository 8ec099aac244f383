// Attention of tokens to a few trained rows alone, for LLaMA-Adapter: no causal order, no samples.
#pragma once

#include "autograd/tape.h"
#include "kernels/attention.h"

namespace shardtune::adapters {

/// out [T,A*D] = softmax(scale * q k^T) v per head, over the rows of k and v alone; in q's dtype,
/// scores and sums in f32.
/// Shapes  q [T,A*D]; k, v [P,Hk*D] of q's dtype; gradients of k and v are f32
autograd::Variable prompt_attention(autograd::Tape& tape, const autograd::Variable& q,
                                    const autograd::Variable& k, const autograd::Variable& v,
                                    const kernels::AttentionShape& shape);

}  // namespace shardtune::adapters
