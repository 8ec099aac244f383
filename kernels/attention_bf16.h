// The form of attention that multiplies bf16 pairs in hardware. attention.h's functions choose it
// when the machine has such instructions; the tests drive it with an emulation of them.
#pragma once

#include "kernels/attention.h"
#include "kernels/attention_bf16_tiles.h"

namespace shardtune::kernels::bf16 {

/// kernels::attention and attention_backward on checked bf16 arguments.
void attention(const AttentionForward& args, const TileFunctions& functions);
void attention_backward(const AttentionBackward& args, const TileFunctions& functions);

}  // namespace shardtune::kernels::bf16
