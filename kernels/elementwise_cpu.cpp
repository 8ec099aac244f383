// foreach_target.h stands before every other header of Highway.
// clang-format off
#include "kernels/elementwise_cpu.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
#include "kernels/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

// y[i] (+)= value(i, n) over the range.
template <class Value>
HWY_INLINE void write_range(const TensorView& y, Accumulate accumulate, cpu::Range range,
                            const Value& value) {
  const Row out = row_of(y) + range.begin;
  const auto count = static_cast<size_t>(range.end - range.begin);
  if (accumulate == Accumulate::kYes) {
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      store_n(hn::Add(load_n(out, i, n), value(i, n)), out, i, n);
    });
  } else {
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR { store_n(value(i, n), out, i, n); });
  }
}

void CopyScaled(const TensorView& x, const TensorView& y, Accumulate accumulate, float scale,
                cpu::Range range) {
  const Row in = row_of(x) + range.begin;
  const Vf factor = hn::Set(Df(), scale);
  if (scale == 1.0f) {
    write_range(y, accumulate, range,
                [&](size_t i, size_t n) HWY_ATTR { return load_n(in, i, n); });
  } else {
    write_range(y, accumulate, range,
                [&](size_t i, size_t n) HWY_ATTR { return hn::Mul(load_n(in, i, n), factor); });
  }
}

void AddBias(const TensorView& bias, const TensorView& y, cpu::Range rows) {
  const int64_t width = y.dim(1);
  const Row b = row_of(bias);
  for (int64_t r = rows.begin; r < rows.end; ++r)
    write_range(y, Accumulate::kYes, {r * width, (r + 1) * width},
                [&](size_t i, size_t n) HWY_ATTR { return load_n(b, i, n); });
}

void SumRows(const TensorView& dy, const TensorView& out, Accumulate accumulate,
             cpu::Range columns) {
  const int64_t rows = dy.dim(0), width = dy.dim(1);
  const Row in = row_of(dy) + columns.begin, result = row_of(out) + columns.begin;
  for_each_vector(
      static_cast<size_t>(columns.end - columns.begin), [&](size_t i, size_t n) HWY_ATTR {
        Vf total = accumulate == Accumulate::kYes ? load_n(result, i, n) : hn::Zero(Df());
        for (int64_t first = 0; first < rows; first += kTokenChunk) {
          Vf sum = hn::Zero(Df());
          for (int64_t t = first; t < HWY_MIN(rows, first + kTokenChunk); ++t)
            sum = hn::Add(sum, load_n(in + t * width, i, n));
          total = hn::Add(total, sum);
        }
        store_n(total, result, i, n);
      });
}

void Swiglu(const TensorView& gate, const TensorView& up, const TensorView& out, cpu::Range range) {
  const Row g = row_of(gate) + range.begin, u = row_of(up) + range.begin;
  write_range(out, Accumulate::kNo, range, [&](size_t i, size_t n) HWY_ATTR {
    const Vf x = load_n(g, i, n);
    return hn::Mul(hn::Mul(x, sigmoid_f32(x)), load_n(u, i, n));
  });
}

void SwigluBackwardRange(const SwigluBackward& args, cpu::Range range) {
  const Row dout = row_of(args.dout) + range.begin, gate = row_of(args.gate) + range.begin;
  const Row up = row_of(args.up) + range.begin;
  const Row dgate = row_of(args.dgate) + range.begin, dup = row_of(args.dup) + range.begin;
  const Vf one = hn::Set(Df(), 1.0f);
  const auto count = static_cast<size_t>(range.end - range.begin);
  for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
    const Vf x = load_n(gate, i, n), dy = load_n(dout, i, n), u = load_n(up, i, n);
    const Vf s = sigmoid_f32(x);
    // silu'(x) = s (1 + x (1 - s))
    const Vf slope = hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
    store_n(hn::Mul(dy, hn::Mul(x, s)), dup, i, n);
    store_n(hn::Mul(hn::Mul(dy, u), slope), dgate, i, n);
  });
}

// u(x) = 2 sqrt(2/pi) (x + 0.044715 x^3): 0.5 (1 + tanh(u/2)) = sigmoid(u), without cancellation.
constexpr float kGeluScale = 1.5957691216057308f;
constexpr float kGeluCubic = 0.044715f;

template <Activation kActivation>
HWY_INLINE Vf value_of(Vf x) {
  const Df df;
  if constexpr (kActivation == Activation::kRelu) {
    return hn::IfThenElse(hn::Lt(x, hn::Zero(df)), hn::Zero(df), x);  // NaN stays
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    const Vf cubic = hn::Mul(hn::Set(df, kGeluCubic), hn::Mul(x, x));
    const Vf u = hn::Mul(hn::Set(df, kGeluScale), hn::MulAdd(cubic, x, x));
    return hn::Mul(x, sigmoid_f32(u));
  } else if constexpr (kActivation == Activation::kSilu) {
    return hn::Mul(x, sigmoid_f32(x));
  } else if constexpr (kActivation == Activation::kTanh) {
    return hn::Tanh(df, x);
  } else {
    return sigmoid_f32(x);
  }
}

template <Activation kActivation>
HWY_INLINE Vf slope_of(Vf x) {
  const Df df;
  const Vf one = hn::Set(df, 1.0f);
  if constexpr (kActivation == Activation::kRelu) {
    return hn::IfThenElseZero(hn::Gt(x, hn::Zero(df)), one);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    const Vf cubic = hn::Mul(hn::Set(df, kGeluCubic), hn::Mul(x, x));
    const Vf u = hn::Mul(hn::Set(df, kGeluScale), hn::MulAdd(cubic, x, x));
    const Vf du = hn::Mul(hn::Set(df, kGeluScale), hn::MulAdd(hn::Set(df, 3.0f), cubic, one));
    const Vf s = sigmoid_f32(u);
    return hn::MulAdd(hn::Mul(hn::Mul(x, s), hn::Sub(one, s)), du, s);
  } else if constexpr (kActivation == Activation::kSilu) {
    const Vf s = sigmoid_f32(x);
    return hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one));
  } else if constexpr (kActivation == Activation::kTanh) {
    const Vf t = hn::Tanh(df, x);
    return hn::NegMulAdd(t, t, one);
  } else {
    const Vf s = sigmoid_f32(x);
    return hn::Mul(s, hn::Sub(one, s));
  }
}

template <Activation kActivation>
void activate_range(const TensorView& x, const TensorView& y, cpu::Range range) {
  const Row in = row_of(x) + range.begin;
  write_range(y, Accumulate::kNo, range,
              [&](size_t i, size_t n) HWY_ATTR { return value_of<kActivation>(load_n(in, i, n)); });
}

void Activate(Activation activation, const TensorView& x, const TensorView& y, cpu::Range range) {
  switch (activation) {
    case Activation::kRelu:
      return activate_range<Activation::kRelu>(x, y, range);
    case Activation::kGeluTanh:
      return activate_range<Activation::kGeluTanh>(x, y, range);
    case Activation::kSilu:
      return activate_range<Activation::kSilu>(x, y, range);
    case Activation::kTanh:
      return activate_range<Activation::kTanh>(x, y, range);
    default:
      return activate_range<Activation::kSigmoid>(x, y, range);
  }
}

template <Activation kActivation>
void activate_backward_range(const TensorView& x, const TensorView& dy, const TensorView& dx,
                             Accumulate accumulate, cpu::Range range) {
  const Row in = row_of(x) + range.begin, dout = row_of(dy) + range.begin;
  write_range(dx, accumulate, range, [&](size_t i, size_t n) HWY_ATTR {
    return hn::Mul(load_n(dout, i, n), slope_of<kActivation>(load_n(in, i, n)));
  });
}

void ActivateBackward(Activation activation, const TensorView& x, const TensorView& dy,
                      const TensorView& dx, Accumulate accumulate, cpu::Range range) {
  switch (activation) {
    case Activation::kRelu:
      return activate_backward_range<Activation::kRelu>(x, dy, dx, accumulate, range);
    case Activation::kGeluTanh:
      return activate_backward_range<Activation::kGeluTanh>(x, dy, dx, accumulate, range);
    case Activation::kSilu:
      return activate_backward_range<Activation::kSilu>(x, dy, dx, accumulate, range);
    case Activation::kTanh:
      return activate_backward_range<Activation::kTanh>(x, dy, dx, accumulate, range);
    default:
      return activate_backward_range<Activation::kSigmoid>(x, dy, dx, accumulate, range);
  }
}

// Eight interleaved fp64 sums folded in a fixed order: the same bits on every instruction set.
double SumSquares(const float* x, int64_t n) {
  constexpr int64_t kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j)
      sums[j] += double{x[i + j]} * double{x[i + j]};
  }
  for (int64_t j = 0; i + j < n; ++j)
    sums[j] += double{x[i + j]} * double{x[i + j]};
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

bool AllFinite(const TensorView& x, cpu::Range range) {
  const Df df;
  const Row in = row_of(x) + range.begin;
  // 0 * x is 0 for a finite x and NaN for any other; a NaN stays in a sum.
  Vf sum = hn::Zero(df);
  for_each_vector(static_cast<size_t>(range.end - range.begin), [&](size_t i, size_t n) HWY_ATTR {
    sum = hn::MulAdd(load_n(in, i, n), hn::Zero(df), sum);
  });
  return hn::AllFalse(df, hn::IsNaN(sum));
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {
HWY_EXPORT(CopyScaled);
HWY_EXPORT(AddBias);
HWY_EXPORT(SumRows);
HWY_EXPORT(Swiglu);
HWY_EXPORT(SwigluBackwardRange);
HWY_EXPORT(Activate);
HWY_EXPORT(ActivateBackward);
HWY_EXPORT(SumSquares);
HWY_EXPORT(AllFinite);

namespace cpu {
void copy_scaled(const TensorView& x, const TensorView& y, Accumulate accumulate, float scale,
                 Range elements) {
  HWY_DYNAMIC_DISPATCH(CopyScaled)(x, y, accumulate, scale, elements);
}
void add_bias(const TensorView& bias, const TensorView& y, Range rows) {
  HWY_DYNAMIC_DISPATCH(AddBias)(bias, y, rows);
}
void sum_rows(const TensorView& dy, const TensorView& out, Accumulate accumulate, Range columns) {
  HWY_DYNAMIC_DISPATCH(SumRows)(dy, out, accumulate, columns);
}
void swiglu(const TensorView& gate, const TensorView& up, const TensorView& out, Range elements) {
  HWY_DYNAMIC_DISPATCH(Swiglu)(gate, up, out, elements);
}
void swiglu_backward(const SwigluBackward& args, Range elements) {
  HWY_DYNAMIC_DISPATCH(SwigluBackwardRange)(args, elements);
}
void activate(Activation activation, const TensorView& x, const TensorView& y, Range elements) {
  HWY_DYNAMIC_DISPATCH(Activate)(activation, x, y, elements);
}
void activate_backward(Activation activation, const TensorView& x, const TensorView& dy,
                       const TensorView& dx, Accumulate accumulate, Range elements) {
  HWY_DYNAMIC_DISPATCH(ActivateBackward)(activation, x, dy, dx, accumulate, elements);
}
double sum_squares(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(SumSquares)(x, n); }
bool all_finite(const TensorView& x, Range elements) {
  return HWY_DYNAMIC_DISPATCH(AllFinite)(x, elements);
}
}  // namespace cpu
}  // namespace shardtune::kernels
#endif
