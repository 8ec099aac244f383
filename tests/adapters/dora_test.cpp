// DoRA's magnitude and row norms against plain forms.
#include "adapters/dora.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/ops.h"
#include "kernels/gemm.h"
#include "tests/autograd/ops_fixture.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::adapters {
namespace {

using testing::random_tensor;
using testing::SmallModel;
using Dora = testing::OpsFixture;

TEST_F(Dora, TheMagnitudeGoesBackToInputAndMagnitude) {
  const ParameterId magnitude = trainable("magnitude", {5}, 3);
  const ParameterId bias =
      store_.declare({"bias", unit_, ParameterKind::kFrozen, DType::kFloat32, Shape{5}});
  store_.publish(bias, random_tensor({5}, 4).view().bytes());
  check({{4, 5}}, [&](autograd::Tape& tape, const auto& x) {
    Tensor norm = random_tensor({5}, 5);
    for (float& value : norm.span<float>())
      value = 1.0f + std::abs(value);
    return scale_to_magnitude(tape, x[0], {magnitude, std::move(norm), bias}, DType::kFloat32);
  });
}

TEST_F(Dora, RowNormsAreThoseOfTheChangedWeight) {
  SmallModel small("tied_gqa");
  small.store.seal();
  const models::BaseLinear& linear = *small.model->linears().back();
  const auto lease = small.store.acquire(linear.unit(), Pass::kForward);
  const int64_t out = linear.out_features(), in = linear.in_features();
  const Tensor a = random_tensor({3, in}, 1), b = random_tensor({out, 3}, 2);
  Tensor base(Shape{out}, DType::kFloat32);
  base_row_norms_squared(linear, base.span<float>());
  const Tensor norms = changed_row_norms(linear, base, {a, b, 0.7f}, DType::kFloat32);
  Tensor weight(Shape{out, in}, DType::kFloat32);
  linear.dequantize_rows(0, out, weight);
  kernels::gemm(b, a, kernels::Transpose::kNo, weight, kernels::Accumulate::kYes, 0.7f);
  for (int64_t i = 0; i < out; ++i) {
    double squared = 0.0;
    for (const float w : weight.view().rows(i, i + 1).span<const float>())
      squared += static_cast<double>(w) * w;
    EXPECT_NEAR(norms.data<float>()[i], std::sqrt(squared),
                std::sqrt(squared) * 4.0 * tolerance::sum_of_products(in));
  }
}

}  // namespace
}  // namespace shardtune::adapters
