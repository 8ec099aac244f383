// Root-mean-square normalisation, forward and backward.
#pragma once

#include "core/tensor.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

/// y = weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps), computed in fp32, rounded once.
/// Shapes  x [T,H]; weight [H] f32; y [T,H]; rstd [T] f32 (saved for backward; may be empty)
/// Dtypes  x f32 | bf16; y f32 | bf16
/// Source  Zhang and Sennrich 2019, arXiv:1910.07467
void rms_norm(const TensorView& x, const TensorView& weight, float eps, const TensorView& y,
              const TensorView& rstd);

/// dx (+)= gradient of x; the weight's gradient is dweight (f32 [H], may be empty), summed over
/// tokens in chunks of kTokenChunk added in order.
/// Dtypes  dy f32 | bf16; dx f32 | bf16
struct RmsNormBackward {
  TensorView dy, x, weight, rstd;
  TensorView dx;
  TensorView dweight;
};
void rms_norm_backward(const RmsNormBackward& args, Accumulate accumulate_dx);

}  // namespace shardtune::kernels
