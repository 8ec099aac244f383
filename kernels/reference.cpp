#include "kernels/reference.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/checks.h"

namespace shardtune::kernels {

namespace {
void store(const TensorView& x, int64_t i, double value, Accumulate accumulate) {
  const double before = accumulate == Accumulate::kYes ? double{load_element(x, i)} : 0.0;
  store_element(x, i, static_cast<float>(before + value));
}
}  // namespace

void gemm_reference(const TensorView& a, const TensorView& b, Transpose transpose_b,
                    const TensorView& c, Accumulate accumulate, float scale) {
  const int64_t m = c.dim(0), n = c.dim(1), k = a.dim(1);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (int64_t p = 0; p < k; ++p) {
        const int64_t index = transpose_b == Transpose::kYes ? j * k + p : p * n + j;
        sum += double{load_element(a, i * k + p)} * double{load_element(b, index)};
      }
      store(c, i * n + j, scale * sum, accumulate);
    }
  }
}

void gemm_over_tokens_reference(const TensorView& dy, const TensorView& x, const TensorView& out,
                                Accumulate accumulate, float scale) {
  const int64_t tokens = dy.dim(0), n = dy.dim(1), k = x.dim(1);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0.0;
      for (int64_t t = 0; t < tokens; ++t)
        sum += double{load_element(dy, t * n + i)} * double{load_element(x, t * k + j)};
      store(out, i * k + j, scale * sum, accumulate);
    }
  }
}

void rms_norm_reference(const TensorView& x, const TensorView& weight, float eps,
                        const TensorView& y, const TensorView& rstd) {
  const int64_t tokens = x.dim(0), width = x.dim(1);
  for (int64_t t = 0; t < tokens; ++t) {
    double squares = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      const double value = load_element(x, t * width + i);
      squares += value * value;
    }
    const double r = 1.0 / std::sqrt(squares / static_cast<double>(width) + double{eps});
    for (int64_t i = 0; i < width; ++i) {
      const double value = load_element(x, t * width + i);
      store_element(y, t * width + i, static_cast<float>(load_element(weight, i) * (value * r)));
    }
    if (!rstd.empty())
      store_element(rstd, t, static_cast<float>(r));
  }
}

void rms_norm_backward_reference(const RmsNormBackward& args, Accumulate accumulate_dx) {
  const int64_t tokens = args.x.dim(0), width = args.x.dim(1);
  std::vector<double> dweight(static_cast<size_t>(width), 0.0);
  for (int64_t t = 0; t < tokens; ++t) {
    const double r = load_element(args.rstd, t);
    double dot = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      const double dy = load_element(args.dy, t * width + i);
      const double x = load_element(args.x, t * width + i);
      dot += dy * load_element(args.weight, i) * x;
      dweight[static_cast<size_t>(i)] += dy * x * r;
    }
    const double shared = dot * r * r * r / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) {
      const double dy = load_element(args.dy, t * width + i);
      const double x = load_element(args.x, t * width + i);
      store(args.dx, t * width + i, dy * load_element(args.weight, i) * r - x * shared,
            accumulate_dx);
    }
  }
  if (!args.dweight.empty()) {
    for (int64_t i = 0; i < width; ++i)
      store_element(args.dweight, i, static_cast<float>(dweight[static_cast<size_t>(i)]));
  }
}

void layer_norm_reference(const LayerNormForward& args) {
  const int64_t tokens = args.x.dim(0), width = args.x.dim(1);
  for (int64_t t = 0; t < tokens; ++t) {
    double mean = 0.0, variance = 0.0;
    for (int64_t i = 0; i < width; ++i)
      mean += load_element(args.x, t * width + i) / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) {
      const double v = load_element(args.x, t * width + i) - mean;
      variance += v * v / static_cast<double>(width);
    }
    const double r = 1.0 / std::sqrt(variance + args.eps);
    for (int64_t i = 0; i < width; ++i) {
      const double n = (load_element(args.x, t * width + i) - mean) * r;
      store_element(
          args.y, t * width + i,
          static_cast<float>(load_element(args.weight, i) * n + load_element(args.bias, i)));
    }
    if (!args.mean.empty())
      store_element(args.mean, t, static_cast<float>(mean));
    if (!args.rstd.empty())
      store_element(args.rstd, t, static_cast<float>(r));
  }
}

void layer_norm_backward_reference(const LayerNormBackward& args, Accumulate accumulate_dx) {
  const int64_t tokens = args.x.dim(0), width = args.x.dim(1);
  for (int64_t t = 0; t < tokens; ++t) {
    const double r = load_element(args.rstd, t), mean = load_element(args.mean, t);
    const auto g = [&](int64_t i) {
      return double{load_element(args.dy, t * width + i)} * load_element(args.weight, i);
    };
    const auto n = [&](int64_t i) { return (load_element(args.x, t * width + i) - mean) * r; };
    double sum = 0.0, dot = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      sum += g(i) / static_cast<double>(width);
      dot += g(i) * n(i) / static_cast<double>(width);
    }
    for (int64_t i = 0; i < width; ++i)
      store(args.dx, t * width + i, r * (g(i) - sum - n(i) * dot), accumulate_dx);
  }
  for (int64_t i = 0; i < width && !args.dweight.empty(); ++i) {
    double weight = 0.0, bias = 0.0;
    for (int64_t t = 0; t < tokens; ++t) {
      const double dy = load_element(args.dy, t * width + i);
      bias += dy;
      weight += dy * (load_element(args.x, t * width + i) - load_element(args.mean, t)) *
                load_element(args.rstd, t);
    }
    store_element(args.dweight, i, static_cast<float>(weight));
    store_element(args.dbias, i, static_cast<float>(bias));
  }
}

void rope_reference(const TensorView& x, const RopeArgs& args, RopeDirection direction) {
  const int64_t half = static_cast<int64_t>(args.inverse_frequencies.size());
  const int64_t tokens = x.dim(0), heads = x.dim(1) / (2 * half);
  const double sign = direction == RopeDirection::kForward ? 1.0 : -1.0;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto position = static_cast<float>(args.positions[static_cast<size_t>(t)]);
    for (int64_t i = 0; i < half; ++i) {
      const float angle = position * args.inverse_frequencies[static_cast<size_t>(i)];
      const double c = std::cos(double{angle}), s = sign * std::sin(double{angle});
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t first = (t * heads + h) * 2 * half + i;
        const double x1 = load_element(x, first), x2 = load_element(x, first + half);
        store_element(x, first, static_cast<float>(x1 * c - x2 * s));
        store_element(x, first + half, static_cast<float>(x2 * c + x1 * s));
      }
    }
  }
}

void swiglu_reference(const TensorView& gate, const TensorView& up, const TensorView& out) {
  for (int64_t i = 0; i < out.numel(); ++i) {
    const double value = activation_value(Activation::kSilu, load_element(gate, i));
    store_element(out, i, static_cast<float>(value * load_element(up, i)));
  }
}

void swiglu_backward_reference(const SwigluBackward& args) {
  for (int64_t i = 0; i < args.dout.numel(); ++i) {
    const double dout = load_element(args.dout, i), gate = load_element(args.gate, i);
    const double up = load_element(args.up, i);
    store_element(args.dgate, i,
                  static_cast<float>(dout * up * activation_derivative(Activation::kSilu, gate)));
    store_element(args.dup, i,
                  static_cast<float>(dout * activation_value(Activation::kSilu, gate)));
  }
}

namespace {
constexpr double kSqrt2OverPi = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;
constexpr double kGeluCubic = 0.044715;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }
}  // namespace

double activation_value(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu:
      return x > 0.0 || std::isnan(x) ? x : 0.0;
    case Activation::kGelu:
      return x * normal_cdf(x);
    case Activation::kGeluTanh:
      // 0.5 (1 + tanh(u)) = sigmoid(2 u), without cancellation for negative u
      return x * sigmoid(2.0 * kSqrt2OverPi * (x + kGeluCubic * x * x * x));
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSigmoid:
      return sigmoid(x);
  }
  throw ArgumentError("activate: unknown activation");
}

double activation_derivative(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu:
      return x > 0.0 ? 1.0 : 0.0;
    case Activation::kGelu:
      return normal_cdf(x) +
             x * std::exp(-0.5 * x * x) * 0.5 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi;
    case Activation::kGeluTanh: {
      const double t = sigmoid(2.0 * kSqrt2OverPi * (x + kGeluCubic * x * x * x));
      const double inner = 2.0 * kSqrt2OverPi * (1.0 + 3.0 * kGeluCubic * x * x);
      return t + x * t * (1.0 - t) * inner;
    }
    case Activation::kSilu: {
      const double s = sigmoid(x);
      return s * (1.0 + x * (1.0 - s));
    }
    case Activation::kTanh: {
      const double t = std::tanh(x);
      return 1.0 - t * t;
    }
    case Activation::kSigmoid: {
      const double s = sigmoid(x);
      return s * (1.0 - s);
    }
  }
  throw ArgumentError("activate: unknown activation");
}

void cross_entropy_reference(const TensorView& logits, std::span<const int32_t> labels, float scale,
                             std::span<float> losses, const TensorView& dlogits) {
  const int64_t rows = logits.dim(0), vocab = logits.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    const float* const row = logits.data<const float>() + r * vocab;
    const int64_t label = labels[static_cast<size_t>(r)];
    double max = row[0], sum = 0.0;
    for (int64_t j = 0; j < vocab; ++j)
      max = std::max(max, double{row[j]});
    for (int64_t j = 0; j < vocab; ++j)
      sum += std::exp(double{row[j]} - max);
    if (!losses.empty())
      losses[static_cast<size_t>(r)] = static_cast<float>(std::log(sum) + max - row[label]);
    for (int64_t j = 0; !dlogits.empty() && j < vocab; ++j) {
      const double p = std::exp(double{row[j]} - max) / sum;
      store_element(dlogits, r * vocab + j,
                    static_cast<float>(scale * (p - (j == label ? 1.0 : 0.0))));
    }
  }
}

}  // namespace shardtune::kernels
