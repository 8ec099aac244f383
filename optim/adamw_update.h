// The vectorised AdamW update behind AdamW::step; its scalars are prepared by adamw.cpp.
#pragma once

#include <cstddef>

namespace shardtune::optim {

/// Scalars of one update, computed in fp64 and rounded once to f32, as torch hands them on.
struct AdamWScalars {
  float decay_factor;  // 1 - lr * weight_decay
  // exp_avg moves towards the gradient as torch's lerp does: from the nearer end.
  bool lerp_from_gradient;  // 1 - beta1 >= 0.5
  float lerp_weight;        // 1 - beta1, or -beta1 when from the gradient
  float beta2;
  float one_minus_beta2;
  float bias_correction2_sqrt;  // sqrt(1 - beta2^t)
  float eps;
  float negative_step_size;  // -lr / (1 - beta1^t)
};

struct AdamWSpans {
  float* parameter;
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  size_t count;
};

/// Fastest form of this processor; the bits of every form are those of adamw_update_plain.
void adamw_update(const AdamWScalars& scalars, const AdamWSpans& spans);
void adamw_update_plain(const AdamWScalars& scalars, const AdamWSpans& spans);

}  // namespace shardtune::optim
