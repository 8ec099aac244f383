// Shared by the tests of kernels/: random tensors, comparison under a derived bound, and the check
// that results have the same bits at 1, 2, 3, 4 and 8 threads.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/checks.h"

namespace shardtune::kernels {

/// Unit roundoff of f32 and of bf16 (half an ulp relative to the value).
inline constexpr double kRoundoffF32 = 0x1.0p-24;
inline constexpr double kRoundoffBf16 = 0x1.0p-8;

inline double roundoff(DType dtype) {
  return dtype == DType::kFloat32 ? kRoundoffF32 : kRoundoffBf16;
}

inline Tensor random_tensor(Shape shape, DType dtype, uint64_t seed, float scale = 1.0f) {
  Tensor tensor(shape, dtype);
  const CounterRng rng(seed);
  for (int64_t i = 0; i < tensor.numel(); ++i)
    store_element(tensor, i, scale * rng.normal(static_cast<uint64_t>(i)));
  return tensor;
}

inline Tensor absolute(const TensorView& x) {
  Tensor result(x.shape(), DType::kFloat32);
  for (int64_t i = 0; i < x.numel(); ++i)
    store_element(result, i, std::abs(load_element(x, i)));
  return result;
}

inline Tensor converted(const TensorView& x, DType dtype) {
  Tensor result(x.shape(), dtype);
  for (int64_t i = 0; i < x.numel(); ++i)
    store_element(result, i, load_element(x, i));
  return result;
}

/// |found - expected| <= bound(i, expected) for every element; reports the first that is not.
inline void expect_within(const TensorView& found, const TensorView& expected,
                          const std::function<double(int64_t, double)>& bound,
                          const std::string& what) {
  ASSERT_EQ(found.numel(), expected.numel()) << what;
  for (int64_t i = 0; i < found.numel(); ++i) {
    const double e = load_element(expected, i), f = load_element(found, i);
    ASSERT_LE(std::abs(f - e), bound(i, e))
        << what << " element " << i << " of " << found.shape().to_string() << ": expected " << e
        << ", found " << f;
  }
}

/// Sets the thread count and puts the old one back.
class ThreadScope {
 public:
  explicit ThreadScope(int n) : before_(num_threads()) { set_num_threads(n); }
  ~ThreadScope() { set_num_threads(before_); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int before_;
};

/// `run` computes and returns its outputs; they must have equal bits at every thread count.
inline void expect_same_bits_at_any_thread_count(const std::function<std::vector<Tensor>()>& run,
                                                 const std::string& what) {
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 3, 4, 8}) {
    const ThreadScope scope(threads);
    std::vector<Tensor> outputs = run();
    if (first.empty()) {
      first = std::move(outputs);
      continue;
    }
    ASSERT_EQ(outputs.size(), first.size());
    for (size_t i = 0; i < outputs.size(); ++i) {
      ASSERT_EQ(0, std::memcmp(outputs[i].view().raw(), first[i].view().raw(),
                               static_cast<size_t>(first[i].num_bytes())))
          << what << ": output " << i << " differs between 1 and " << threads << " threads";
    }
  }
}

/// Derivative of a scalar function of x[i] by central differences of step h, in fp64 over f32 data.
inline double central_difference(const TensorView& x, int64_t i, float h,
                                 const std::function<double()>& value) {
  float* const element = x.data<float>() + i;
  const float before = *element;
  *element = before + h;
  const double step_up = double{*element} - before, up = value();
  *element = before - h;
  const double step_down = double{before} - *element, down = value();
  *element = before;
  return (up - down) / (step_up + step_down);
}

/// sum_i weights[i] * x[i] in fp64: the scalar whose gradient with respect to x is `weights`.
inline double weighted_sum(const TensorView& x, const TensorView& weights) {
  double sum = 0.0;
  for (int64_t i = 0; i < x.numel(); ++i)
    sum += double{load_element(x, i)} * load_element(weights, i);
  return sum;
}

}  // namespace shardtune::kernels
