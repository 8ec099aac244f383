// Compares gradients from the tape with central differences of a weighted sum of the output.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "autograd/tape.h"
#include "core/rng.h"
#include "tests/tolerance.h"

namespace shardtune::testing {

inline Tensor random_tensor(Shape shape, uint64_t key, float size = 1.0f) {
  Tensor tensor(shape, DType::kFloat32);
  const CounterRng rng(key);
  for (int64_t i = 0; i < tensor.numel(); ++i)
    tensor.data<float>()[i] = size * rng.normal(static_cast<uint64_t>(i));
  return tensor;
}

inline double weighted_sum(const TensorView& y, const Tensor& weights) {
  double sum = 0.0;
  for (int64_t i = 0; i < y.numel(); ++i)
    sum += static_cast<double>(y.data<const float>()[i]) * weights.data<float>()[i];
  return sum;
}

/// `values` are the points whose gradients are checked; `run` computes the weighted output sum.
/// Elements are moved by h, at most 40 of them spread over the values; `third` bounds the third
/// derivative of that sum.
inline void expect_gradient(std::span<float> values, std::span<const float> gradient,
                            const std::function<double()>& run, double size, double third = 40.0) {
  const double h = 1e-2;
  const double tolerance = tolerance::central_difference(size, h, third);
  ASSERT_EQ(values.size(), gradient.size());
  const size_t stride = values.size() / 40 + 1;
  for (size_t i = 0; i < values.size(); i += stride) {
    const float kept = values[i];
    values[i] = kept + static_cast<float>(h);
    const double above = run();
    values[i] = kept - static_cast<float>(h);
    const double below = run();
    values[i] = kept;
    EXPECT_NEAR(gradient[i], (above - below) / (2.0 * h), tolerance) << "element " << i;
  }
}

}  // namespace shardtune::testing
