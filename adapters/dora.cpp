#include "adapters/dora.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "core/parallel_for.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

using autograd::GradSlot;
using autograd::Tape;
using autograd::Variable;
using kernels::Accumulate;
using kernels::Transpose;

namespace {

// to[t][i] = from[t][i] * factor[i] + shift[i]
struct Columns {
  const float* factor;
  const float* shift;  // may be null
};
void map_columns(const TensorView& from, const Columns& columns, const TensorView& to) {
  const int64_t width = from.dim(1);
  parallel_for(from.dim(0), 8, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* in = from.data<const float>() + t * width;
      float* out = to.data<float>() + t * width;
      for (int64_t i = 0; i < width; ++i)
        out[i] = in[i] * columns.factor[i] + (columns.shift == nullptr ? 0.0f : columns.shift[i]);
    }
  });
}

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

}  // namespace

Variable scale_to_magnitude(Tape& tape, const Variable& y, ParameterId magnitude, Tensor norm,
                            ParameterId bias) {
  SHARDTUNE_ASSERT(y.dtype() == DType::kFloat32);
  const Variable m = tape.parameter(magnitude);
  const Variable trained_bias = bias == kNoParameter ? Variable() : tape.trained(bias);
  const TensorView b = bias == kNoParameter ? TensorView() : tape.store().value(bias);
  const Factors factors = factors_of(m.value(), norm, b);
  Tensor z(y.shape(), DType::kFloat32);
  map_columns(y.value(),
              {factors.factor.data<const float>(),
               factors.shift.empty() ? nullptr : factors.shift.data<const float>()},
              z);
  Variable output = tape.result(std::move(z), {y, m, trained_bias});
  auto kept = std::make_shared<Tensor>(std::move(norm));
  tape.record(output, [&tape, y, m, kept, bias, db = trained_bias.grad_ref()](Tensor& dz) {
    const TensorView b = bias == kNoParameter ? TensorView() : tape.store().value(bias);
    const Factors factors = factors_of(m.value(), *kept, b);
    // dm = sum over tokens of dz * (y - b) / norm, in token chunks.
    Tensor products(dz.shape(), DType::kFloat32);
    const int64_t width = dz.dim(1);
    parallel_for(dz.dim(0), 8, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin * width; e < end * width; ++e) {
        const float shift = b.empty() ? 0.0f : b.data<const float>()[e % width];
        products.data<float>()[e] = dz.data<const float>()[e] *
                                    (y.value().data<const float>()[e] - shift) /
                                    kept->data<const float>()[e % width];
      }
    });
    const GradSlot dm = m.grad_ref().slot();
    kernels::sum_rows(products, dm.grad, dm.accumulate);
    if (db.wanted())
      db.give(bias_gradient(dz, factors.factor));
    if (!y.requires_grad())
      return;
    map_columns(dz, {factors.factor.data<const float>(), nullptr}, dz);
    y.grad_ref().give(std::move(dz));
  });
  return output;
}

Tensor changed_row_norms(const models::BaseLinear& linear, const TensorView& base_norms_squared,
                         const LowRankChange& change, DType compute) {
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
