#include "optim/clip.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/parallel_for.h"

namespace shardtune::optim {

float clip_coefficient(double norm, double max_norm) {
  if (!std::isfinite(norm) || norm < 0.0)
    throw ArgumentError("clip: expected a finite norm, found " + std::to_string(norm));
  if (!(max_norm >= 0.0))
    throw ArgumentError("clip: expected max_grad_norm >= 0, found " + std::to_string(max_norm));
  if (max_norm == 0.0)
    return 1.0f;
  return static_cast<float>(std::min(1.0, max_norm / (norm + 1e-6)));
}

void scale_gradient(std::span<float> gradient, float coefficient) {
  if (coefficient == 1.0f)
    return;
  constexpr int64_t kGrain = 1 << 15;
  parallel_for(static_cast<int64_t>(gradient.size()), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      gradient[static_cast<size_t>(i)] *= coefficient;
  });
}

}  // namespace shardtune::optim
