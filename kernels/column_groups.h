// Sums over groups of neighbouring columns, and the way back.
#pragma once

#include "core/tensor.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

/// y[t,j] = scale * (x[t,j*g] + ... + x[t,j*g+g-1]) with g = columns of x / columns of y.
/// Shapes  x [T, n*g]; y [T, n], f32 | bf16 on either side
/// Exact   sums in fp32: eight running ones over every eighth column where 8 divides g, then those
///         in order; one product, one rounding
void sum_column_groups(const TensorView& x, float scale, const TensorView& y);

/// dx[t,j*g+i] (+)= scale * dy[t,j], i < g: the gradient of sum_column_groups.
void spread_column_groups(const TensorView& dy, float scale, const TensorView& dx,
                          Accumulate accumulate);

}  // namespace shardtune::kernels
