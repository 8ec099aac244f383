#include "kernels/norm.h"

#include "kernels/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

const std::vector<Shape> kShapes = {{1, 1}, {1, 17}, {17, 217}, {217, 256}, {5, 576}};
const std::vector<DType> kFloats = {DType::kFloat32, DType::kBFloat16};
constexpr float kEps = 1e-5f;

struct Problem {
  Tensor x, weight, dy, rstd;
  explicit Problem(Shape shape, DType dtype)
      : x(random_tensor(shape, dtype, 1)),
        weight(random_tensor({shape[1]}, DType::kFloat32, 2)),
        dy(random_tensor(shape, dtype, 3)),
        rstd(Shape{shape[0]}, DType::kFloat32) {}
};

TEST(RmsNorm, ForwardEqualsTheReference) {
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kFloats) {
      const Problem p(shape, dtype);
      const Tensor y(shape, dtype), expected(shape, DType::kFloat32);
      const Tensor expected_rstd(Shape{shape[0]}, DType::kFloat32);
      rms_norm(p.x, p.weight, kEps, y, p.rstd);
      rms_norm_reference(p.x, p.weight, kEps, expected, expected_rstd);
      // The sum of H squares rounds H times at most, halved by the root; a few operations more.
      const double factor = (0.5 * static_cast<double>(shape[1]) + 6) * kRoundoffF32;
      expect_within(
          y, expected,
          [&](int64_t, double e) {
            return (factor + 1.01 * roundoff(dtype)) * std::abs(e) + 1e-37;
          },
          "y " + shape.to_string());
      expect_within(
          p.rstd, expected_rstd, [&](int64_t, double e) { return factor * e; }, "rstd");
    }
  }
}

TEST(RmsNorm, BackwardEqualsTheReference) {
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kFloats) {
      for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
        const Problem p(shape, dtype);
        rms_norm(p.x, p.weight, kEps, Tensor(shape, dtype), p.rstd);
        const Tensor dx = random_tensor(shape, dtype, 4), dweight(Shape{shape[1]}, DType::kFloat32);
        const Tensor expected = converted(dx, DType::kFloat32);
        const Tensor expected_dweight(Shape{shape[1]}, DType::kFloat32);
        rms_norm_backward({p.dy, p.x, p.weight, p.rstd, dx, dweight}, accumulate);
        rms_norm_backward_reference({p.dy, p.x, p.weight, p.rstd, expected, expected_dweight},
                                    accumulate);
        // Terms up to 50 in size (products of four normal values and rstd), sums of H or T of them.
        const double width_factor = static_cast<double>(shape[1] + 8) * kRoundoffF32 * 50;
        const double token_factor = static_cast<double>(shape[0] + 8) * kRoundoffF32 * 50;
        const double rstd_scale = shape[1] == 1 ? 300.0 : 1.0;  // one element near zero
        expect_within(
            dx, expected,
            [&](int64_t, double e) {
              return width_factor * rstd_scale + 1.01 * roundoff(dtype) * std::abs(e);
            },
            "dx " + shape.to_string());
        expect_within(
            dweight, expected_dweight, [&](int64_t, double) { return token_factor; }, "dweight");
      }
    }
  }
}

TEST(RmsNorm, BackwardIsTheDerivative) {
  const Shape shape{3, 19};
  const Problem p(shape, DType::kFloat32);
  const Tensor y(shape, DType::kFloat32), dx(shape, DType::kFloat32);
  const Tensor dweight(Shape{19}, DType::kFloat32);
  rms_norm(p.x, p.weight, kEps, y, p.rstd);
  rms_norm_backward({p.dy, p.x, p.weight, p.rstd, dx, dweight}, Accumulate::kNo);
  const auto value = [&] {
    rms_norm(p.x, p.weight, kEps, y, {});
    return weighted_sum(y, p.dy);
  };
  // Truncation of order h^2 = 1e-4, roundoff 1e-6 / 2h.
  for (int64_t i = 0; i < p.x.numel(); ++i)
    EXPECT_NEAR(central_difference(p.x, i, 1e-2f, value), dx.data<float>()[i], 1e-3) << i;
  for (int64_t i = 0; i < 19; ++i)
    EXPECT_NEAR(central_difference(p.weight, i, 1e-2f, value), dweight.data<float>()[i], 1e-3) << i;
}

struct LayerProblem : Problem {
  Tensor bias, mean;
  LayerProblem(Shape shape, DType dtype)
      : Problem(shape, dtype),
        bias(random_tensor({shape[1]}, DType::kFloat32, 5)),
        mean(Shape{shape[0]}, DType::kFloat32) {}
  LayerNormForward forward(const TensorView& y) const {
    return {x, weight, bias, y, mean, rstd, kEps};
  }
};

TEST(LayerNorm, ForwardAndBackwardEqualTheReference) {
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kFloats) {
      for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
        const LayerProblem p(shape, dtype);
        const Tensor y(shape, dtype), expected(shape, DType::kFloat32);
        layer_norm(p.forward(y));
        const Tensor mean(Shape{shape[0]}, DType::kFloat32), rstd(Shape{shape[0]}, DType::kFloat32);
        layer_norm_reference({p.x, p.weight, p.bias, expected, mean, rstd, kEps});
        // Sums of H terms of size 4; a row of one element has variance 0 and rstd 1 / sqrt(eps).
        const double rows = static_cast<double>(shape[1] + 8) * kRoundoffF32;
        const double rstd_scale = shape[1] == 1 ? 320.0 : 1.0;
        expect_within(
            y, expected,
            [&](int64_t, double e) {
              return 20 * rows * rstd_scale + 1.01 * roundoff(dtype) * std::abs(e);
            },
            "y " + shape.to_string());
        const Tensor dx = random_tensor(shape, dtype, 4);
        const Tensor expected_dx = converted(dx, DType::kFloat32);
        const Tensor sums_of(Shape{4, shape[1]}, DType::kFloat32);
        const auto row = [&](int64_t i) {
          return sums_of.view().rows(i, i + 1).reshaped({shape[1]});
        };
        layer_norm_backward({p.dy, p.x, p.weight, p.mean, p.rstd, dx, row(0), row(1)}, accumulate);
        layer_norm_backward_reference(
            {p.dy, p.x, p.weight, p.mean, p.rstd, expected_dx, row(2), row(3)}, accumulate);
        // Sums of T terms of size 10.
        const double sums = 20 * static_cast<double>(shape[0] + 8) * kRoundoffF32 * rstd_scale;
        expect_within(
            row(0), row(2), [&](int64_t, double e) { return sums + 1e-5 * std::abs(e); },
            "dweight");
        expect_within(
            row(1), row(3), [&](int64_t, double e) { return sums + 1e-5 * std::abs(e); }, "dbias");
        expect_within(
            dx, expected_dx,
            [&](int64_t, double e) {
              return 50 * rows * rstd_scale + 1.01 * roundoff(dtype) * std::abs(e);
            },
            "dx " + shape.to_string());
      }
    }
  }
}

TEST(LayerNorm, BackwardIsTheDerivative) {
  const Shape shape{3, 19};
  const LayerProblem p(shape, DType::kFloat32);
  const Tensor y(shape, DType::kFloat32), dx(shape, DType::kFloat32);
  layer_norm(p.forward(y));
  layer_norm_backward({p.dy, p.x, p.weight, p.mean.clone(), p.rstd.clone(), dx, {}, {}},
                      Accumulate::kNo);
  const auto value = [&] {
    layer_norm(p.forward(y));
    return weighted_sum(y, p.dy);
  };
  // Truncation of order h^2 = 1e-4, roundoff 1e-6 / 2h.
  for (int64_t i = 0; i < p.x.numel(); ++i)
    EXPECT_NEAR(central_difference(p.x, i, 1e-2f, value), dx.data<float>()[i], 1e-3) << i;
}

TEST(LayerNorm, SameBitsAtAnyThreadCount) {
  const Shape shape{1100, 217};
  const LayerProblem p(shape, DType::kFloat32);
  expect_same_bits_at_any_thread_count(
      [&] {
        std::vector<Tensor> outputs;
        outputs.emplace_back(shape, DType::kFloat32);
        outputs.emplace_back(shape, DType::kFloat32);
        layer_norm(p.forward(outputs[0]));
        layer_norm_backward({p.dy, p.x, p.weight, p.mean, p.rstd, outputs[1], {}, {}},
                            Accumulate::kNo);
        return outputs;
      },
      "layer_norm");
}

TEST(LayerNorm, RefusesShapesThatDoNotFit) {
  const Tensor x(Shape{2, 3}, DType::kFloat32), weight(Shape{4}, DType::kFloat32);
  EXPECT_THROW(layer_norm({x, weight, weight, x, {}, {}, kEps}), ArgumentError);
}

TEST(RmsNorm, MixesDtypesOfInputAndOutput) {
  const Tensor x = random_tensor({4, 33}, DType::kBFloat16, 1);
  const Tensor weight = random_tensor({33}, DType::kFloat32, 2);
  const Tensor wide(Shape{4, 33}, DType::kFloat32), narrow(Shape{4, 33}, DType::kBFloat16);
  rms_norm(x, weight, kEps, wide, {});
  rms_norm(x, weight, kEps, narrow, {});
  for (int64_t i = 0; i < wide.numel(); ++i)
    EXPECT_EQ(BFloat16(wide.data<float>()[i]).bits, narrow.data<BFloat16>()[i].bits);
}

TEST(RmsNorm, ARowOfZerosGivesZeros) {
  const Tensor x = Tensor::zeros({2, 9}, DType::kFloat32), y(Shape{2, 9}, DType::kFloat32);
  rms_norm(x, random_tensor({9}, DType::kFloat32, 1), kEps, y, {});
  for (int64_t i = 0; i < 18; ++i)
    EXPECT_EQ(y.data<float>()[i], 0.0f);
}

TEST(RmsNorm, RefusesShapesThatDoNotFit) {
  const Tensor x(Shape{2, 3}, DType::kFloat32), weight(Shape{4}, DType::kFloat32);
  EXPECT_THROW(rms_norm(x, weight, kEps, x, {}), ArgumentError);
}

TEST(RmsNorm, SameBitsAtAnyThreadCount) {
  const Shape shape{1100, 217};
  for (const DType dtype : kFloats) {
    const Problem p(shape, dtype);
    expect_same_bits_at_any_thread_count(
        [&] {
          std::vector<Tensor> outputs;
          for (int i = 0; i < 2; ++i)
            outputs.emplace_back(shape, dtype);
          outputs.emplace_back(Shape{shape[0]}, DType::kFloat32);
          outputs.emplace_back(Shape{shape[1]}, DType::kFloat32);
          rms_norm(p.x, p.weight, kEps, outputs[0], outputs[2]);
          rms_norm_backward({p.dy, p.x, p.weight, outputs[2], outputs[1], outputs[3]},
                            Accumulate::kNo);
          return outputs;
        },
        "rms_norm");
  }
}

}  // namespace
}  // namespace shardtune::kernels
