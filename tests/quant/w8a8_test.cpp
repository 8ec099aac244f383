#include "quant/w8a8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/quant/weight_fixture.h"

namespace shardtune::quant {
namespace {

constexpr int64_t kOut = 70, kIn = 192, kTokens = 9;

std::vector<QuantizationOptions> formats() {
  QuantizationOptions nf4{"nf4", 64, false}, nested{"nf4", 64, true}, fp4{"fp4", 64, true};
  return {{"none"}, {"int8"}, nf4, nested, fp4};
}

/// Inputs with channels far above the rest, as activations of language models have them.
std::vector<float> inputs_with_outliers() {
  std::vector<float> x = normal_values(kTokens * kIn, 1.0f, 5);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (const int64_t channel : {3, 77, 190})
      x[static_cast<size_t>(t * kIn + channel)] *= 60.0f;
  }
  return x;
}

std::vector<float> column_absmax(const std::vector<float>& x) {
  std::vector<float> absmax(static_cast<size_t>(kIn), 0.0f);
  for (size_t i = 0; i < x.size(); ++i)
    absmax[i % kIn] = std::max(absmax[i % kIn], std::abs(x[i]));
  return absmax;
}

double relative_error(const Tensor& found, const Tensor& expected) {
  double error = 0.0, square = 0.0;
  for (int64_t i = 0; i < expected.view().numel(); ++i) {
    const double e = expected.data<float>()[i], d = found.data<float>()[i] - e;
    error += d * d;
    square += e * e;
  }
  return std::sqrt(error / square);
}

TEST(BalancingExponent, IsTheNearestPowerOfTwo) {
  for (const float ratio :
       {1e-7f, 0.02f, 0.26f, 0.5f, 0.99f, 1.0f, 1.9f, 2.1f, 3.0f, 700.0f, 3e7f}) {
    const int exponent = balancing_exponent(ratio, 1.0f);
    EXPECT_LE(std::abs(exponent - std::log2(std::sqrt(ratio))), 0.5 + 1e-6) << ratio;
  }
  EXPECT_EQ(balancing_exponent(0.0f, 1.0f), 0);
  EXPECT_EQ(balancing_exponent(1.0f, 0.0f), 0);
  EXPECT_EQ(balancing_exponent(std::nanf(""), 1.0f), 0);
  EXPECT_EQ(balancing_exponent(std::numeric_limits<float>::infinity(), 1.0f), 0);
  EXPECT_EQ(balancing_exponent(1e30f, 1e-5f), W8A8::kMaxExponent);
  EXPECT_EQ(balancing_exponent(1e-5f, 1e30f), W8A8::kMinExponent);
}

// Element by element: half a step of x on each weight code and half a step of W on each input, and
// their product; plus what f32 rounds.
TEST(W8A8, StaysWithinItsStepsInEveryFormatAndBothDirections) {
  for (const QuantizationOptions& options : formats()) {
    const LoadedWeight loaded(options, kOut, kIn, DType::kFloat32);
    const Tensor w = loaded.dense(DType::kFloat32);
    W8A8 int8(*loaded.weight);
    const std::vector<float> values = inputs_with_outliers();
    const std::vector<float> absmax = column_absmax(values);
    int8.calibrate(absmax);
    const auto factor = [&](int64_t i) { return std::ldexp(1.0, int8.exponents()[i]); };
    std::vector<double> row_absmax(kOut, 0.0);
    for (int64_t o = 0; o < kOut; ++o)
      for (int64_t i = 0; i < kIn; ++i)
        row_absmax[o] = std::max(row_absmax[o], std::abs(w.data<float>()[o * kIn + i]) * factor(i));

    const Tensor x = tensor_of(values, {kTokens, kIn}, DType::kFloat32);
    const Tensor y({kTokens, kOut}, DType::kFloat32);
    int8.matmul(x, y, Accumulate::kNo);
    for (int64_t t = 0; t < kTokens; ++t) {
      double x_absmax = 0.0;
      for (int64_t i = 0; i < kIn; ++i)
        x_absmax = std::max(x_absmax, std::abs(values[t * kIn + i]) / factor(i));
      for (int64_t o = 0; o < kOut; ++o) {
        const double x_step = 0.5001 * x_absmax / 127.0, w_step = 0.5001 * row_absmax[o] / 127.0;
        double exact = 0.0, bound = 0.0;
        for (int64_t i = 0; i < kIn; ++i) {
          const double a = values[t * kIn + i] / factor(i),
                       b = w.data<float>()[o * kIn + i] * factor(i);
          exact += a * b;
          bound += x_step * std::abs(b) + w_step * std::abs(a) + x_step * w_step;
        }
        EXPECT_NEAR(y.data<float>()[t * kOut + o], exact, bound + 1e-5 * std::abs(exact))
            << options.method << " token " << t << " row " << o;
      }
    }

    const std::vector<float> gradients = normal_values(kTokens * kOut, 1e-4f, 6);
    const Tensor dy = tensor_of(gradients, {kTokens, kOut}, DType::kFloat32);
    const Tensor dx({kTokens, kIn}, DType::kFloat32);
    int8.matmul_transposed(dy, dx, Accumulate::kNo);
    for (int64_t t = 0; t < kTokens; ++t) {
      double dy_absmax = 0.0;
      for (int64_t o = 0; o < kOut; ++o)
        dy_absmax = std::max(dy_absmax, std::abs(gradients[t * kOut + o]) * row_absmax[o] / 127.0);
      const double step = 0.5001 * dy_absmax / 127.0;
      for (int64_t i = 0; i < kIn; ++i) {
        double exact = 0.0, bound = 0.0;
        for (int64_t o = 0; o < kOut; ++o) {
          const double a = gradients[t * kOut + o];
          const double code = w.data<float>()[o * kIn + i] * factor(i) * 127.0 / row_absmax[o];
          exact += a * w.data<float>()[o * kIn + i];
          bound +=
              (step * (std::abs(code) + 0.5001) + 0.5001 * std::abs(a) * row_absmax[o] / 127.0) /
              factor(i);
        }
        EXPECT_NEAR(dx.data<float>()[t * kIn + i], exact, bound + 1e-5 * std::abs(exact))
            << options.method << " token " << t << " channel " << i;
      }
    }
  }
}

TEST(W8A8, MovingOutliersIntoTheWeightLessensTheError) {
  const LoadedWeight loaded({"none"}, kOut, kIn, DType::kFloat32);
  const std::vector<float> values = inputs_with_outliers();
  const Tensor x = tensor_of(values, {kTokens, kIn}, DType::kFloat32);
  const Tensor exact({kTokens, kOut}, DType::kFloat32), y({kTokens, kOut}, DType::kFloat32);
  loaded.weight->matmul(x, exact, Accumulate::kNo);
  W8A8 int8(*loaded.weight);
  int8.set_exponents(std::vector<int8_t>(kIn, 0));
  int8.matmul(x, y, Accumulate::kNo);
  const double unmigrated = relative_error(y, exact);
  int8.calibrate(column_absmax(values));
  int8.matmul(x, y, Accumulate::kNo);
  EXPECT_LT(relative_error(y, exact), 0.5 * unmigrated);
}

TEST(W8A8, AddsToWhatStandsThereAndRoundsBf16Once) {
  const LoadedWeight loaded({"nf4", 64, true}, kOut, kIn, DType::kBFloat16);
  W8A8 int8(*loaded.weight);
  int8.calibrate(std::vector<float>(kIn, 1.0f));
  const Tensor x =
      tensor_of(normal_values(kTokens * kIn, 1.0f, 7), {kTokens, kIn}, DType::kBFloat16);
  const Tensor y({kTokens, kOut}, DType::kFloat32);
  int8.matmul(x, y, Accumulate::kNo);
  const std::vector<float> start = normal_values(kTokens * kOut, 1.0f, 8);
  const Tensor sum = tensor_of(start, {kTokens, kOut}, DType::kBFloat16);
  int8.matmul(x, sum, Accumulate::kYes);
  for (size_t i = 0; i < start.size(); ++i) {
    const float expected = static_cast<float>(BFloat16(start[i])) + y.data<float>()[i];
    EXPECT_EQ(sum.data<BFloat16>()[i].bits, BFloat16(expected).bits);
  }
}

}  // namespace
}  // namespace shardtune::quant
