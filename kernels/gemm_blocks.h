// Parts of gemm.cpp that its variants share, private to kernels/.
#pragma once

#include "kernels/gemm_onednn.h"

namespace shardtune::kernels {

/// Cuts c into blocks that depend on the shape alone and runs each on one thread.
void run_blocks(const ProductSpec& whole, const void* a, const void* b, void* c);

/// x as f32.
Tensor to_float32(const TensorView& x);

}  // namespace shardtune::kernels
