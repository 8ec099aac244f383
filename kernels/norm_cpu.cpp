// foreach_target.h stands before every other header of Highway.
// clang-format off
#include "kernels/norm_cpu.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <cmath>
#include "kernels/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

void RmsNormRows(const cpu::RmsNormForward& args, int64_t begin, int64_t end) {
  const int64_t width = args.x.dim(1);
  const auto count = static_cast<size_t>(width);
  const Row weight = row_of(args.weight);
  float* const saved = args.rstd.empty() ? nullptr : args.rstd.data<float>();
  for (int64_t t = begin; t < end; ++t) {
    const Row x = row_of(args.x) + t * width, y = row_of(args.y) + t * width;
    Vf squares = hn::Zero(Df());
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      const Vf v = load_n(x, i, n);
      squares = hn::MulAdd(v, v, squares);
    });
    const float mean = sum_of_lanes(squares) / static_cast<float>(width);
    const float rstd = 1.0f / std::sqrt(mean + args.eps);
    const Vf factor = hn::Set(Df(), rstd);
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      store_n(hn::Mul(load_n(weight, i, n), hn::Mul(load_n(x, i, n), factor)), y, i, n);
    });
    if (saved != nullptr)
      saved[t] = rstd;
  }
}

// dx = r (w dy) - x r^3 / H * sum(w dy x)
void RmsNormBackwardRows(const RmsNormBackward& args, Accumulate accumulate, int64_t begin,
                         int64_t end) {
  const Df df;
  const int64_t width = args.x.dim(1);
  const auto count = static_cast<size_t>(width);
  const Row weight = row_of(args.weight);
  for (int64_t t = begin; t < end; ++t) {
    const Row x = row_of(args.x) + t * width, dy = row_of(args.dy) + t * width;
    const Row dx = row_of(args.dx) + t * width;
    const float rstd = args.rstd.data<const float>()[t];
    Vf dot = hn::Zero(df);
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      dot = hn::MulAdd(hn::Mul(load_n(dy, i, n), load_n(weight, i, n)), load_n(x, i, n), dot);
    });
    const Vf factor = hn::Set(df, rstd);
    const Vf shared =
        hn::Set(df, sum_of_lanes(dot) * rstd * rstd * rstd / static_cast<float>(width));
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      const Vf direct = hn::Mul(hn::Mul(load_n(dy, i, n), load_n(weight, i, n)), factor);
      Vf value = hn::NegMulAdd(load_n(x, i, n), shared, direct);
      if (accumulate == Accumulate::kYes)
        value = hn::Add(load_n(dx, i, n), value);
      store_n(value, dx, i, n);
    });
  }
}

void NormDweightColumns(const cpu::NormDweight& args, int64_t begin, int64_t end) {
  const Df df;
  const int64_t tokens = args.x.dim(0), width = args.x.dim(1);
  const float* const rstd = args.rstd.data<const float>();
  const float* const mean = args.mean.empty() ? nullptr : args.mean.data<const float>();
  const Row x = row_of(args.x) + begin, dy = row_of(args.dy) + begin;
  const Row out = row_of(args.dweight) + begin;
  for_each_vector(static_cast<size_t>(end - begin), [&](size_t i, size_t n) HWY_ATTR {
    Vf total = hn::Zero(df);
    for (int64_t first = 0; first < tokens; first += kTokenChunk) {
      Vf sum = hn::Zero(df);
      for (int64_t t = first; t < HWY_MIN(tokens, first + kTokenChunk); ++t) {
        const Vf centred =
            hn::Sub(load_n(x + t * width, i, n), hn::Set(df, mean == nullptr ? 0.0f : mean[t]));
        const Vf normalised = hn::Mul(centred, hn::Set(df, rstd[t]));
        sum = hn::MulAdd(load_n(dy + t * width, i, n), normalised, sum);
      }
      total = hn::Add(total, sum);
    }
    store_n(total, out, i, n);
  });
}

// The mean first, then the squares around it: no cancellation.
void LayerNormRows(const LayerNormForward& args, int64_t begin, int64_t end) {
  const Df df;
  const int64_t width = args.x.dim(1);
  const auto count = static_cast<size_t>(width);
  const Row weight = row_of(args.weight), bias = row_of(args.bias);
  for (int64_t t = begin; t < end; ++t) {
    const Row x = row_of(args.x) + t * width, y = row_of(args.y) + t * width;
    Vf sum = hn::Zero(df);
    for_each_vector(count,
                    [&](size_t i, size_t n) HWY_ATTR { sum = hn::Add(sum, load_n(x, i, n)); });
    const float mean = sum_of_lanes(sum) / static_cast<float>(width);
    const Vf shift = hn::Set(df, mean);
    Vf squares = hn::Zero(df);
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      const Vf v = hn::Sub(load_n(x, i, n), shift);
      // Lanes behind the row are zeros that the shift has moved.
      const Vf square = hn::Mul(v, v);
      squares = hn::Add(squares,
                        n < hn::Lanes(df) ? hn::IfThenElseZero(hn::FirstN(df, n), square) : square);
    });
    const float variance = sum_of_lanes(squares) / static_cast<float>(width);
    const float rstd = 1.0f / std::sqrt(variance + args.eps);
    const Vf factor = hn::Set(df, rstd);
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      const Vf normalised = hn::Mul(hn::Sub(load_n(x, i, n), shift), factor);
      store_n(hn::MulAdd(load_n(weight, i, n), normalised, load_n(bias, i, n)), y, i, n);
    });
    if (!args.mean.empty())
      args.mean.data<float>()[t] = mean;
    if (!args.rstd.empty())
      args.rstd.data<float>()[t] = rstd;
  }
}

// With g = w dy and n = (x - mean) r: dx = r (g - mean(g) - n mean(g n))
void LayerNormBackwardRows(const LayerNormBackward& args, Accumulate accumulate, int64_t begin,
                           int64_t end) {
  const Df df;
  const int64_t width = args.x.dim(1);
  const auto count = static_cast<size_t>(width);
  const Row weight = row_of(args.weight);
  for (int64_t t = begin; t < end; ++t) {
    const Row x = row_of(args.x) + t * width, dy = row_of(args.dy) + t * width;
    const Row dx = row_of(args.dx) + t * width;
    const Vf factor = hn::Set(df, args.rstd.data<const float>()[t]);
    const Vf shift = hn::Set(df, args.mean.data<const float>()[t]);
    Vf sum = hn::Zero(df), dot = hn::Zero(df);
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      // Behind the row g is zero, so that n does not matter there.
      const Vf g = hn::Mul(load_n(dy, i, n), load_n(weight, i, n));
      sum = hn::Add(sum, g);
      dot = hn::MulAdd(g, hn::Mul(hn::Sub(load_n(x, i, n), shift), factor), dot);
    });
    const Vf mean_g = hn::Set(df, sum_of_lanes(sum) / static_cast<float>(width));
    const Vf mean_gn = hn::Set(df, sum_of_lanes(dot) / static_cast<float>(width));
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      const Vf g = hn::Mul(load_n(dy, i, n), load_n(weight, i, n));
      const Vf normalised = hn::Mul(hn::Sub(load_n(x, i, n), shift), factor);
      Vf value = hn::Mul(factor, hn::NegMulAdd(normalised, mean_gn, hn::Sub(g, mean_g)));
      if (accumulate == Accumulate::kYes)
        value = hn::Add(load_n(dx, i, n), value);
      store_n(value, dx, i, n);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {
HWY_EXPORT(RmsNormRows);
HWY_EXPORT(RmsNormBackwardRows);
HWY_EXPORT(NormDweightColumns);
HWY_EXPORT(LayerNormRows);
HWY_EXPORT(LayerNormBackwardRows);

namespace cpu {
void rms_norm_rows(const RmsNormForward& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(RmsNormRows)(args, begin, end);
}
void rms_norm_backward_rows(const RmsNormBackward& args, Accumulate accumulate_dx, int64_t begin,
                            int64_t end) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackwardRows)(args, accumulate_dx, begin, end);
}
void norm_dweight_columns(const NormDweight& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(NormDweightColumns)(args, begin, end);
}
void layer_norm_rows(const LayerNormForward& args, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(LayerNormRows)(args, begin, end);
}
void layer_norm_backward_rows(const LayerNormBackward& args, Accumulate accumulate_dx,
                              int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(LayerNormBackwardRows)(args, accumulate_dx, begin, end);
}
}  // namespace cpu
}  // namespace shardtune::kernels
#endif
