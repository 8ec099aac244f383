#include "kernels/elementwise.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numbers>

#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/elementwise_cpu.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kGrain = 16384;  // elements that are worth a thread

void check_like(const char* op, const char* name, const TensorView& x, int64_t numel) {
  check_float(op, name, x);
  if (x.numel() != numel)
    fail_argument(op, name, x, "float of " + std::to_string(numel) + " elements");
}

template <typename Body>
void parallel_ranges(int64_t count, const Body& body) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) { body(cpu::Range{begin, end}); });
}
}  // namespace

void copy_scaled(const TensorView& x, const TensorView& y, Accumulate accumulate, float scale) {
  check_float("copy_scaled", "x", x);
  check_like("copy_scaled", "y", y, x.numel());
  parallel_ranges(x.numel(),
                  [&](cpu::Range range) { cpu::copy_scaled(x, y, accumulate, scale, range); });
}

void add_bias(const TensorView& bias, const TensorView& y) {
  if (y.shape().ndim() != 2)
    fail_argument("add_bias", "y", y, "a matrix");
  check_float("add_bias", "y", y);
  check_float32("add_bias", "bias", bias, y.dim(1));
  const int64_t grain = kGrain / std::max<int64_t>(y.dim(1), 1) + 1;
  parallel_for(y.dim(0), grain, [&](int64_t begin, int64_t end) {
    cpu::add_bias(bias, y, {begin, end});
  });
}

void sum_rows(const TensorView& dy, const TensorView& out, Accumulate accumulate) {
  if (dy.shape().ndim() != 2)
    fail_argument("sum_rows", "dy", dy, "a matrix");
  check_float("sum_rows", "dy", dy);
  check_float32("sum_rows", "out", out, dy.dim(1));
  parallel_for(dy.dim(1), 64, [&](int64_t begin, int64_t end) {
    cpu::sum_rows(dy, out, accumulate, {begin, end});
  });
}

void swiglu(const TensorView& gate, const TensorView& up, const TensorView& out) {
  check_float("swiglu", "gate", gate);
  check_like("swiglu", "up", up, gate.numel());
  check_like("swiglu", "out", out, gate.numel());
  parallel_ranges(gate.numel(), [&](cpu::Range range) { cpu::swiglu(gate, up, out, range); });
}

void swiglu_backward(const SwigluBackward& args) {
  const int64_t numel = args.dout.numel();
  check_like("swiglu_backward", "dout", args.dout, numel);
  check_like("swiglu_backward", "gate", args.gate, numel);
  check_like("swiglu_backward", "up", args.up, numel);
  check_like("swiglu_backward", "dgate", args.dgate, numel);
  check_like("swiglu_backward", "dup", args.dup, numel);
  parallel_ranges(numel, [&](cpu::Range range) { cpu::swiglu_backward(args, range); });
}

namespace {
constexpr float kSqrtHalf = static_cast<float>(0.5 * std::numbers::sqrt2);

// Through erfc: the lower tail keeps its relative accuracy.
float normal_cdf(float x) { return 0.5f * std::erfc(-kSqrtHalf * x); }

float gelu_slope(float x) {
  constexpr auto kDensityScale =
      static_cast<float>(0.5 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi);
  return normal_cdf(x) + x * kDensityScale * std::exp(-0.5f * x * x);
}
}  // namespace

void activate(Activation activation, const TensorView& x, const TensorView& y) {
  check_float("activate", "x", x);
  check_like("activate", "y", y, x.numel());
  parallel_ranges(x.numel(), [&](cpu::Range range) {
    if (activation != Activation::kGelu)
      return cpu::activate(activation, x, y, range);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const float value = load_element(x, i);
      store_element(y, i, value * normal_cdf(value));
    }
  });
}

void activate_backward(Activation activation, const TensorView& x, const TensorView& dy,
                       const TensorView& dx, Accumulate accumulate) {
  check_float("activate_backward", "x", x);
  check_like("activate_backward", "dy", dy, x.numel());
  check_like("activate_backward", "dx", dx, x.numel());
  parallel_ranges(x.numel(), [&](cpu::Range range) {
    if (activation != Activation::kGelu)
      return cpu::activate_backward(activation, x, dy, dx, accumulate, range);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const float gradient = load_element(dy, i) * gelu_slope(load_element(x, i));
      const float before = accumulate == Accumulate::kYes ? load_element(dx, i) : 0.0f;
      store_element(dx, i, before + gradient);
    }
  });
}

void sum_squares_per_chunk(std::span<const float> x, std::span<double> chunks) {
  const auto n = static_cast<int64_t>(x.size());
  const int64_t expected = ceil_div(n, kShardGranule);
  if (static_cast<int64_t>(chunks.size()) != expected)
    throw ArgumentError("sum_squares_per_chunk: chunks: expected " + std::to_string(expected) +
                        " for " + std::to_string(n) + " elements, found " +
                        std::to_string(chunks.size()) + ". This is a bug of the caller.");
  parallel_for(expected, 4, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kShardGranule;
      chunks[static_cast<size_t>(chunk)] =
          cpu::sum_squares(x.data() + first, std::min(kShardGranule, n - first));
    }
  });
}

std::optional<int64_t> find_non_finite(const TensorView& x) {
  check_float("find_non_finite", "x", x);
  const int64_t blocks = ceil_div(x.numel(), kGrain);
  std::atomic<int64_t> first_block{std::numeric_limits<int64_t>::max()};
  parallel_tasks(blocks, [&](int64_t block) {
    const cpu::Range range{block * kGrain, std::min(x.numel(), (block + 1) * kGrain)};
    if (block > first_block.load() || cpu::all_finite(x, range))
      return;
    int64_t seen = first_block.load();
    while (block < seen && !first_block.compare_exchange_weak(seen, block)) {
    }
  });
  if (first_block.load() >= blocks)
    return std::nullopt;
  int64_t i = first_block.load() * kGrain;
  while (std::isfinite(load_element(x, i)))
    ++i;
  return i;
}

}  // namespace shardtune::kernels
