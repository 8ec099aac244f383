// Clipping by the global norm, as torch.nn.utils.clip_grad_norm_.
#pragma once

#include <span>

namespace shardtune::optim {

/// min(1, max_norm / (norm + 1e-6)), rounded once to f32; 1 when max_norm is 0 (clipping off).
/// ArgumentError: norm not finite (the caller stops before the update), max_norm negative.
float clip_coefficient(double norm, double max_norm);

/// gradient *= coefficient; nothing when it is 1.
void scale_gradient(std::span<float> gradient, float coefficient);

}  // namespace shardtune::optim
