// DoRA's magnitude: y = m / ||V|| * (V x) + b, V = W + change, the norm taken per row of V and held
// constant in backward.
// Source  Liu et al. 2024, DoRA, arXiv:2402.09353, section 4.3
#pragma once

#include <span>

#include "autograd/tape.h"
#include "models/base_linear.h"
#include "quant/low_rank_rows.h"

namespace shardtune::adapters {

/// What y is scaled with: m [out] trained, norm [out]; bias: of the linear, or kNoParameter.
struct Magnitude {
  ParameterId m = kNoParameter;
  Tensor norm;
  ParameterId bias = kNoParameter;
};
/// y [T,out] f32 -> m / norm * (y - b) + b for each column, as `result` (f32 or bf16), rounded
/// once. The way back keeps y in that dtype.
autograd::Variable scale_to_magnitude(autograd::Tape& tape, const autograd::Variable& y,
                                      Magnitude magnitude, DType result);

/// ||W + change|| of each row, from ||W||^2 of each row and one product of W with the rows of A:
/// the weight is never dense. `linear`'s unit must be leased; `compute` is the activations' dtype.
Tensor changed_row_norms(const models::BaseLinear& linear, const TensorView& base_norms_squared,
                         const quant::LowRankChange& change, DType compute);

/// ||W||^2 of each row of the dequantised weight. Unit leased.
void base_row_norms_squared(const models::BaseLinear& linear, std::span<float> norms);

}  // namespace shardtune::adapters
