// Compiled once per instruction set by Highway. Products and sums are written apart: a fused
// multiply-add would give other bits than the plain form.
#include "optim/adamw_update.h"

#include <cmath>

#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/adamw_update.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace shardtune::optim {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
void update_vector(D d, const AdamWScalars& s, const AdamWSpans& spans, size_t i) {
  const auto g = hn::LoadU(d, spans.gradient + i);
  auto p = hn::Mul(hn::LoadU(d, spans.parameter + i), hn::Set(d, s.decay_factor));
  auto m = hn::LoadU(d, spans.exp_avg + i);
  m = hn::Add(s.lerp_from_gradient ? g : m, hn::Mul(hn::Set(d, s.lerp_weight), hn::Sub(g, m)));
  const auto square = hn::Mul(hn::Mul(hn::Set(d, s.one_minus_beta2), g), g);
  const auto v = hn::Add(hn::Mul(hn::LoadU(d, spans.exp_avg_sq + i), hn::Set(d, s.beta2)), square);
  const auto root = hn::Div(hn::Sqrt(v), hn::Set(d, s.bias_correction2_sqrt));
  const auto denominator = hn::Add(root, hn::Set(d, s.eps));
  p = hn::Add(p, hn::Div(hn::Mul(hn::Set(d, s.negative_step_size), m), denominator));
  hn::StoreU(p, d, spans.parameter + i);
  hn::StoreU(m, d, spans.exp_avg + i);
  hn::StoreU(v, d, spans.exp_avg_sq + i);
}

void update(const AdamWScalars& scalars, const AdamWSpans& spans) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= spans.count; i += lanes)
    update_vector(d, scalars, spans, i);
  const hn::CappedTag<float, 1> one;
  for (; i < spans.count; ++i)
    update_vector(one, scalars, spans, i);
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::optim
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::optim {

HWY_EXPORT(update);

void adamw_update(const AdamWScalars& scalars, const AdamWSpans& spans) {
  HWY_DYNAMIC_DISPATCH(update)(scalars, spans);
}

void adamw_update_plain(const AdamWScalars& s, const AdamWSpans& spans) {
  for (size_t i = 0; i < spans.count; ++i) {
    const float g = spans.gradient[i];
    const float p = spans.parameter[i] * s.decay_factor;
    const float m_before = spans.exp_avg[i];
    const float m = (s.lerp_from_gradient ? g : m_before) + s.lerp_weight * (g - m_before);
    const float v = spans.exp_avg_sq[i] * s.beta2 + (s.one_minus_beta2 * g) * g;
    const float denominator = std::sqrt(v) / s.bias_correction2_sqrt + s.eps;
    spans.parameter[i] = p + s.negative_step_size * m / denominator;
    spans.exp_avg[i] = m;
    spans.exp_avg_sq[i] = v;
  }
}

}  // namespace shardtune::optim
#endif  // HWY_ONCE
