// foreach_target.h stands before every other header of Highway.
// clang-format off
#include "kernels/cross_entropy_cpu.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cross_entropy_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <cmath>
#include <limits>
#include "kernels/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

cpu::RowStats MergeRow(const float* logits, int64_t n, cpu::RowStats before) {
  const Df df;
  const Row row{const_cast<float*>(logits), nullptr};
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  Vf maxima = hn::Set(df, before.max);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    maxima = hn::Max(maxima, hn::LoadU(df, logits + i));
  float max = max_of_lanes(maxima);
  for (; i < n; ++i)
    max = HWY_MAX(max, logits[i]);
  if (max == kMinusInfinity)
    return before;  // nothing but minus infinity so far: the sum of no terms

  // Blocks bound the length of a running f32 sum.
  constexpr int64_t kBlock = 1024;
  const Vf shift = hn::Set(df, max);
  float sum = before.sum == 0.0f ? 0.0f : before.sum * std::exp(before.max - max);
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = HWY_MIN(kBlock, n - first);
    Vf block = hn::Zero(df);
    int64_t j = 0;
    for (; j + lanes <= count; j += lanes)
      block = hn::Add(block, exp_f32(hn::Sub(hn::LoadU(df, logits + first + j), shift)));
    if (j < count) {
      const auto left = static_cast<size_t>(count - j);
      const Vf tail = exp_f32(hn::Sub(load_n(row, static_cast<size_t>(first + j), left), shift));
      block = hn::Add(block, hn::IfThenElseZero(hn::FirstN(df, left), tail));
    }
    sum += sum_of_lanes(block);
  }
  return {max, sum};
}

void ScaledSoftmaxRow(const cpu::SoftmaxRow& args, const TensorView& out) {
  const Df df;
  const Row in{const_cast<float*>(args.logits), nullptr}, result = row_of(out);
  const Vf shift = hn::Set(df, args.stats.max), factor = hn::Set(df, args.scale / args.stats.sum);
  for_each_vector(static_cast<size_t>(args.n), [&](size_t i, size_t n) HWY_ATTR {
    store_n(hn::Mul(exp_f32(hn::Sub(load_n(in, i, n), shift)), factor), result, i, n);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {
HWY_EXPORT(MergeRow);
HWY_EXPORT(ScaledSoftmaxRow);

namespace cpu {
RowStats merge_row(const float* logits, int64_t n, RowStats before) {
  return HWY_DYNAMIC_DISPATCH(MergeRow)(logits, n, before);
}
void scaled_softmax_row(const SoftmaxRow& row, const TensorView& out) {
  HWY_DYNAMIC_DISPATCH(ScaledSoftmaxRow)(row, out);
}
}  // namespace cpu
}  // namespace shardtune::kernels
#endif
