// The change of a linear that merge-aware training adds to the kept weight before it is quantised:
// scale * B A, by rows, so that a block is decoded, changed and quantised while it is in the cache.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace shardtune::quant {

struct LowRankChange {
  TensorView lora_A;  // f32 [lora_rank, columns]
  TensorView lora_B;  // f32 [rows, lora_rank]
  float scale = 1.0f;
};

/// out [end - begin, columns] += scale * (B[begin:end] A). On the calling thread; many at once.
/// Exact   the sum over the rank runs in its order from 0 on, every product and every sum rounded
///         to fp32 (never fused): the same bits on any machine
/// Errors  ArgumentError: shapes that do not fit
void add_low_rank_rows(const LowRankChange& change, int64_t begin, int64_t end, float* out);

/// The plain form, kept as the oracle.
void add_low_rank_rows_reference(const LowRankChange& change, int64_t begin, int64_t end,
                                 float* out);

}  // namespace shardtune::quant
