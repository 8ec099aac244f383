// How fast this machine multiplies: what a run's speed is held against (trainer/limit.h).
#pragma once

#include "core/dtype.h"

namespace shardtune::kernels {

/// Floating-point operations per second of gemm() on all threads of this process: the best of three
/// spans of about 10 ms, on matrices that the caches hold. Where ranks share cores they measure at
/// the same time, and each gets its part.
/// Dtypes  f32 | bf16, as inputs and output of the product
double measure_gemm_rate(DType dtype);

}  // namespace shardtune::kernels
