#include "adapters/dora.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "core/parallel_for.h"
#include "kernels/column_scale.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

using autograd::Tape;
using autograd::Variable;
using kernels::Accumulate;
using kernels::Transpose;

namespace {

// m / norm, and b - b * m / norm.
struct Factors {
  Tensor factor;
  Tensor shift;
};
Factors factors_of(const TensorView& magnitude, const Tensor& norm, const TensorView& bias) {
  Factors result{Tensor(norm.shape(), DType::kFloat32), {}};
  if (!bias.empty())
    result.shift = Tensor(norm.shape(), DType::kFloat32);
  parallel_for(norm.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float c = magnitude.data<const float>()[i] / norm.data<const float>()[i];
      result.factor.data<float>()[i] = c;
      if (!bias.empty())
        result.shift.data<float>()[i] = bias.data<const float>()[i] * (1.0f - c);
    }
  });
  return result;
}

// Of what is added beside y: b (1 - m / norm).
Tensor bias_gradient(const Tensor& dz, const Tensor& factor) {
  Tensor db(factor.shape(), DType::kFloat32);
  kernels::sum_rows(dz, db, Accumulate::kNo);
  parallel_for(db.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      db.data<float>()[i] *= 1.0f - factor.data<const float>()[i];
  });
  return db;
}

// dm = sum over tokens of dz * (y - b), divided by the norm.
Tensor magnitude_gradient(Tensor dots, const Tensor& norm) {
  parallel_for(dots.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      dots.data<float>()[i] /= norm.data<const float>()[i];
  });
  return dots;
}

}  // namespace

Variable scale_to_magnitude(Tape& tape, const Variable& y, Magnitude magnitude, DType result) {
  SHARDTUNE_ASSERT(y.dtype() == DType::kFloat32);
  const Variable m = tape.parameter(magnitude.m);
  const bool has_bias = magnitude.bias != kNoParameter;
  const Variable trained_bias = has_bias ? tape.trained(magnitude.bias) : Variable();
  const TensorView b = has_bias ? tape.store().value(magnitude.bias) : TensorView();
  const Factors factors = factors_of(m.value(), magnitude.norm, b);
  const bool keeps_copy = result != DType::kFloat32 && tape.needs_grad({y, m, trained_bias});
  Variable kept = y.without_grad();
  Tensor copy = keeps_copy ? Tensor(y.shape(), result) : Tensor();
  Tensor z(y.shape(), result);
  kernels::column_scale({y.value(), factors.factor, factors.shift, z, copy});
  if (keeps_copy)
    kept = Variable::constant(std::move(copy));
  Variable output = tape.result(std::move(z), {y, m, trained_bias}, result);
  tape.record(output, [&tape, kept, y = y.grad_ref(), m, db = trained_bias.grad_ref(),
                       parts = std::make_shared<Magnitude>(std::move(magnitude))](Tensor& dz) {
    const TensorView b =
        parts->bias == kNoParameter ? TensorView() : tape.store().value(parts->bias);
    const Factors factors = factors_of(m.value(), parts->norm, b);
    if (db.wanted())
      db.give(bias_gradient(dz, factors.factor));
    Tensor dots(parts->norm.shape(), DType::kFloat32);
    kernels::column_scale_backward({dz, kept.value(), b, factors.factor, dots});
    m.grad_ref().give(magnitude_gradient(std::move(dots), parts->norm));
    if (y.wanted())
      y.give(std::move(dz));
  });
  return output;
}

Tensor changed_row_norms(const models::BaseLinear& linear, const TensorView& base_norms_squared,
                         const quant::LowRankChange& change, DType compute) {
  const int64_t rank = change.lora_A.dim(0);
  const int64_t out = linear.out_features();
  Tensor a(change.lora_A.shape(), compute);
  kernels::cast(change.lora_A, a);
  Tensor cross(Shape{rank, out}, DType::kFloat32);  // A W^T
  linear.weight().matmul(a, cross, Accumulate::kNo);
  Tensor gram(Shape{rank, rank}, DType::kFloat32);  // A A^T
  kernels::gemm(change.lora_A, change.lora_A, Transpose::kYes, gram, Accumulate::kNo);
  Tensor norms(Shape{out}, DType::kFloat32);
  // ||W_i + s B_i A||^2 = ||W_i||^2 + s B_i . (2 (A W^T)_i + s (A A^T) B_i)
  parallel_for(out, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* b = change.lora_B.data<const float>() + i * rank;
      double sum = 0.0;
      for (int64_t k = 0; k < rank; ++k) {
        double inner = 2.0 * cross.data<const float>()[k * out + i];
        for (int64_t l = 0; l < rank; ++l)
          inner +=
              change.scale * gram.data<const float>()[k * rank + l] * static_cast<double>(b[l]);
        sum += b[k] * inner;
      }
      const double squared = base_norms_squared.data<const float>()[i] + change.scale * sum;
      norms.data<float>()[i] = static_cast<float>(std::sqrt(std::max(squared, 1e-30)));
    }
  });
  return norms;
}

void base_row_norms_squared(const models::BaseLinear& linear, std::span<float> norms) {
  constexpr int64_t kRows = 64;
  const int64_t width = linear.in_features();
  for (int64_t begin = 0; begin < linear.out_features(); begin += kRows) {
    const int64_t end = std::min(begin + kRows, linear.out_features());
    Tensor rows(Shape{end - begin, width}, DType::kFloat32);
    linear.dequantize_rows(begin, end, rows);
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0.0;
      for (const float w : rows.view().rows(i - begin, i - begin + 1).span<const float>())
        sum += static_cast<double>(w) * w;
      norms[static_cast<size_t>(i)] = static_cast<float>(sum);
    }
  }
}

}  // namespace shardtune::adapters
