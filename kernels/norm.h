// Root-mean-square and layer normalisation, forward and backward.
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

/// y = weight * (x - mean) * rstd + bias, rstd = 1 / sqrt(mean((x - mean)^2) + eps), in fp32,
/// rounded once.
/// Shapes  x, y [T,H]; weight, bias [H] f32; mean, rstd [T] f32 (saved for backward; may be empty)
/// Dtypes  x f32 | bf16; y f32 | bf16
/// Source  Ba et al. 2016, arXiv:1607.06450
struct LayerNormForward {
  TensorView x, weight, bias, y, mean, rstd;
  float eps = 0.0f;
};
void layer_norm(const LayerNormForward& args);

/// dx (+)= gradient of x; those of weight and bias are dweight and dbias (f32 [H], may be empty),
/// summed over tokens in chunks of kTokenChunk added in order.
/// Dtypes  dy f32 | bf16; dx f32 | bf16
struct LayerNormBackward {
  TensorView dy, x, weight, mean, rstd;
  TensorView dx;
  TensorView dweight, dbias;
};
void layer_norm_backward(const LayerNormBackward& args, Accumulate accumulate_dx);

}  // namespace shardtune::kernels
