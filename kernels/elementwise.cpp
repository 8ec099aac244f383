#include "kernels/elementwise.h"

#include <algorithm>
#include <cmath>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "kernels/checks.h"
#include "kernels/reference.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kGrain = 16384;
}

void copy_scaled(const TensorView& x, const TensorView& y, Accumulate accumulate, float scale) {
  check_float("copy_scaled", "x", x);
  check_float("copy_scaled", "y", y);
  if (x.numel() != y.numel())
    fail_argument("copy_scaled", "y", y, x.shape().to_string());
  parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float before = accumulate == Accumulate::kYes ? load_element(y, i) : 0.0f;
      const float value = scale * load_element(x, i);
      store_element(y, i, accumulate == Accumulate::kYes ? before + value : value);
    }
  });
}

void add_bias(const TensorView& bias, const TensorView& y) {
  const int64_t n = bias.numel();
  for (int64_t i = 0; i < y.numel(); ++i)
    store_element(y, i, load_element(y, i) + load_element(bias, i % n));
}

void sum_rows(const TensorView& dy, const TensorView& out, Accumulate accumulate) {
  const int64_t rows = dy.dim(0), n = dy.dim(1);
  for (int64_t j = 0; j < n; ++j) {
    float total = accumulate == Accumulate::kYes ? load_element(out, j) : 0.0f;
    for (int64_t first = 0; first < rows; first += kTokenChunk) {
      float sum = 0.0f;
      for (int64_t t = first; t < std::min(rows, first + kTokenChunk); ++t)
        sum += load_element(dy, t * n + j);
      total += sum;
    }
    store_element(out, j, total);
  }
}

void swiglu(const TensorView& gate, const TensorView& up, const TensorView& out) {
  swiglu_reference(gate, up, out);
}
void swiglu_backward(const SwigluBackward& args) { swiglu_backward_reference(args); }

void activate(Activation activation, const TensorView& x, const TensorView& y) {
  for (int64_t i = 0; i < x.numel(); ++i)
    store_element(y, i, static_cast<float>(activation_value(activation, load_element(x, i))));
}

void activate_backward(Activation activation, const TensorView& x, const TensorView& dy,
                       const TensorView& dx, Accumulate accumulate) {
  for (int64_t i = 0; i < x.numel(); ++i) {
    const float before = accumulate == Accumulate::kYes ? load_element(dx, i) : 0.0f;
    store_element(
        dx, i,
        static_cast<float>(before + load_element(dy, i) *
                                        activation_derivative(activation, load_element(x, i))));
  }
}

void dropout(const TensorView& x, float p, const DropoutKey& key, const TensorView& y,
             Accumulate accumulate) {
  const int64_t tokens = x.dim(0), n = x.dim(1);
  if (!(p >= 0.0f && p < 1.0f))
    throw ArgumentError("dropout: p: expected 0 <= p < 1, found " + std::to_string(p));
  const auto threshold = static_cast<uint32_t>(std::lround(double{p} * 0x1.0p24));
  const float scale = 1.0f / (1.0f - p);
  parallel_for(tokens, 8, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint64_t sample = key.sample_of_token[static_cast<size_t>(t)];
      const auto token = static_cast<uint32_t>(key.index_in_sample[static_cast<size_t>(t)]);
      for (int64_t j = 0; j < n; ++j) {
        const auto words =
            philox(key.seed, {static_cast<uint32_t>(j / 4), token, static_cast<uint32_t>(sample),
                              static_cast<uint32_t>(sample >> 32)});
        const bool keep = (words[static_cast<size_t>(j % 4)] >> 8) >= threshold;
        const float value = keep ? load_element(x, t * n + j) * scale : 0.0f;
        const float before = accumulate == Accumulate::kYes ? load_element(y, t * n + j) : 0.0f;
        store_element(y, t * n + j, before + value);
      }
    }
  });
}

void sum_squares_per_chunk(std::span<const float> x, std::span<double> chunks) {
  const auto n = static_cast<int64_t>(x.size());
  if (static_cast<int64_t>(chunks.size()) != ceil_div(n, kShardGranule))
    throw ArgumentError("sum_squares_per_chunk: chunks: expected " +
                        std::to_string(ceil_div(n, kShardGranule)) + ", found " +
                        std::to_string(chunks.size()));
  for (size_t chunk = 0; chunk < chunks.size(); ++chunk) {
    const int64_t first = static_cast<int64_t>(chunk) * kShardGranule;
    double sum = 0.0;
    for (int64_t i = first; i < std::min(n, first + kShardGranule); ++i)
      sum += double{x[static_cast<size_t>(i)]} * x[static_cast<size_t>(i)];
    chunks[chunk] = sum;
  }
}

std::optional<int64_t> find_non_finite(const TensorView& x) {
  for (int64_t i = 0; i < x.numel(); ++i) {
    if (!std::isfinite(load_element(x, i)))
      return i;
  }
  return std::nullopt;
}

}  // namespace shardtune::kernels
