// Rotary position embedding in the "half split" form of Hugging Face: pair (x_i, x_{i+D/2}).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace shardtune::kernels {

/// Inverse frequencies [D/2] in f32: theta^(-2i/D), before any scaling of a family.
std::vector<float> rope_inverse_frequencies(int64_t head_dim, double theta);

enum class RopeDirection { kForward, kInverse };  // kInverse rotates gradients back

/// Rotates x [T, heads * D] in place; token t by angle positions[t] * inverse_frequency.
/// Dtypes  f32 | bf16; angles, sin and cos in f32
/// Source  Su et al. 2021, arXiv:2104.09864
struct RopeArgs {
  std::span<const int32_t> positions;
  std::span<const float> inverse_frequencies;
};
void rope(const TensorView& x, const RopeArgs& args, RopeDirection direction);

}  // namespace shardtune::kernels
