#include "kernels/column_scale.h"

#include "core/error.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

const std::vector<DType> kFloats = {DType::kFloat32, DType::kBFloat16};

struct Rows {
  int64_t t, n;
};
const std::vector<Rows> kRows = {{1, 1}, {7, 17}, {513, 31}, {1100, 600}};

TEST(ColumnScale, EqualsScalarArithmeticForEveryDtype) {
  for (const Rows& shape : kRows) {
    for (const DType from : kFloats) {
      for (const DType to : kFloats) {
        for (const bool shifts : {false, true}) {
          const Tensor y = random_tensor({shape.t, shape.n}, from, 1);
          const Tensor factor = random_tensor({shape.n}, DType::kFloat32, 2);
          const Tensor shift = random_tensor({shape.n}, DType::kFloat32, 3);
          const Tensor z(y.shape(), to), copy(y.shape(), to), expected(y.shape(), to);
          for (int64_t i = 0; i < y.numel(); ++i) {
            const float product = load_element(y, i) * factor.data<float>()[i % shape.n];
            store_element(expected, i,
                          product + (shifts ? shift.data<float>()[i % shape.n] : 0.0f));
          }
          column_scale({y, factor, shifts ? shift.view() : TensorView(), z, copy});
          ASSERT_EQ(0, std::memcmp(z.view().raw(), expected.view().raw(),
                                   static_cast<size_t>(z.num_bytes())));
          for (int64_t i = 0; i < y.numel(); ++i)
            store_element(expected, i, load_element(y, i));
          ASSERT_EQ(0, std::memcmp(copy.view().raw(), expected.view().raw(),
                                   static_cast<size_t>(copy.num_bytes())));
        }
      }
    }
  }
}

// A factor near 1 moves a bf16 result on the average, though most values round back.
TEST(ColumnScale, ASmallFactorIsNotLostInRounding) {
  constexpr float kChange = 1e-3f;  // a quarter of bf16's step
  const Tensor y = random_tensor({2000, 16}, DType::kFloat32, 4);
  const Tensor factor(Shape{16}, DType::kFloat32);
  for (float& f : factor.view().span<float>())
    f = 1.0f + kChange;
  const Tensor z(y.shape(), DType::kBFloat16);
  column_scale({y, factor, {}, z, {}});
  double along = 0.0, squares = 0.0;
  for (int64_t i = 0; i < y.numel(); ++i) {
    const double value = y.data<float>()[i];
    along += (load_element(z, i) - value) * value;
    squares += value * value;
  }
  // Rounding errors of at most 2^-9 of a value, uniform: their mean over n values has a standard
  // deviation of 2^-9 / sqrt(3 n); five of them.
  EXPECT_NEAR(along / squares, kChange, 5.0 * 0x1.0p-9 / std::sqrt(3.0 * 32000.0));
}

TEST(ColumnScaleBackward, EqualsScalarArithmetic) {
  for (const Rows& shape : kRows) {
    for (const DType dtype : kFloats) {
      for (const bool centred : {false, true}) {
        const Tensor dz = random_tensor({shape.t, shape.n}, dtype, 1), before = dz.clone();
        const Tensor y = random_tensor({shape.t, shape.n}, dtype, 2);
        const Tensor centre = random_tensor({shape.n}, DType::kFloat32, 3);
        const Tensor factor = random_tensor({shape.n}, DType::kFloat32, 4);
        const Tensor dots(Shape{shape.n}, DType::kFloat32);
        column_scale_backward({dz, y, centred ? centre.view() : TensorView(), factor, dots});
        for (int64_t i = 0; i < shape.n; ++i) {
          double sum = 0.0, magnitude = 0.0;
          for (int64_t t = 0; t < shape.t; ++t) {
            const int64_t e = t * shape.n + i;
            const double g = load_element(before, e);
            const double value =
                static_cast<double>(load_element(y, e)) - (centred ? centre.data<float>()[i] : 0.0);
            sum += g * value;
            magnitude += std::abs(g * value);
            const Tensor scaled(Shape{1}, dtype);
            store_element(scaled, 0, static_cast<float>(g) * factor.data<float>()[i]);
            ASSERT_EQ(load_element(dz, e), load_element(scaled, 0)) << e;
          }
          // A subtraction, a product and the additions, each rounded to f32.
          ASSERT_NEAR(dots.data<float>()[i], sum,
                      static_cast<double>(shape.t + 3) * kRoundoffF32 * magnitude + 1e-30);
        }
      }
    }
  }
}

TEST(ColumnScaleBackward, SameBitsAtAnyThreadCount) {
  const Tensor dz = random_tensor({1300, 700}, DType::kBFloat16, 1);
  const Tensor y = random_tensor({1300, 700}, DType::kBFloat16, 2);
  const Tensor factor = random_tensor({700}, DType::kFloat32, 3);
  expect_same_bits_at_any_thread_count(
      [&] {
        std::vector<Tensor> outputs;
        outputs.push_back(dz.clone());
        outputs.emplace_back(Shape{700}, DType::kFloat32);
        column_scale_backward({outputs[0], y, {}, factor, outputs[1]});
        return outputs;
      },
      "column_scale_backward");
}

TEST(ColumnScale, RefusesShapesThatDoNotFit) {
  const Tensor y(Shape{2, 3}, DType::kFloat32), wide(Shape{4}, DType::kFloat32);
  const Tensor factor(Shape{3}, DType::kFloat32);
  EXPECT_THROW(column_scale({y, wide, {}, y, {}}), ArgumentError);
  EXPECT_THROW(column_scale({y, factor, wide, y, {}}), ArgumentError);
  EXPECT_THROW(column_scale_backward({y, y, {}, factor, wide}), ArgumentError);
}

}  // namespace
}  // namespace shardtune::kernels
