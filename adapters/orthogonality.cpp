#include "adapters/orthogonality.h"

#include <cmath>
#include <memory>

#include "kernels/gemm.h"

namespace shardtune::adapters {

using autograd::GradSlot;
using autograd::Tape;
using autograd::Variable;
using kernels::Accumulate;
using kernels::Transpose;

namespace {

Tensor transposed(const TensorView& p) {
  const int64_t rows = p.dim(0), columns = p.dim(1);
  Tensor result(Shape{columns, rows}, DType::kFloat32);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j)
      result.data<float>()[j * rows + i] = p.data<const float>()[i * columns + j];
  }
  return result;
}

/// P P^T - I or P^T P - I. The long side is summed over in chunks, as products over tokens are.
Tensor deviation(const TensorView& p, Along along) {
  const bool by_rows = along == Along::kRows;
  const Tensor turned = by_rows ? transposed(p) : Tensor();
  const TensorView tall = by_rows ? turned.view() : p;
  const int64_t n = tall.dim(1);
  Tensor m(Shape{n, n}, DType::kFloat32);
  kernels::gemm_over_tokens(tall, tall, m, Accumulate::kNo);
  for (int64_t i = 0; i < n; ++i)
    m.data<float>()[i * n + i] -= 1.0f;
  return m;
}

}  // namespace

Variable orthogonality_loss(Tape& tape, const Variable& p, Along along, float weight) {
  auto m = std::make_shared<Tensor>(deviation(p.value(), along));
  double squares = 0.0;
  for (const float value : m->span<const float>())
    squares += static_cast<double>(value) * static_cast<double>(value);
  const double norm = std::sqrt(squares);
  Tensor loss(Shape{1}, DType::kFloat32);
  loss.data<float>()[0] = static_cast<float>(static_cast<double>(weight) * norm);
  Variable output = tape.result(std::move(loss), {p});
  tape.record(output, [p, along, weight, norm, m](Tensor& dy) {
    // d ||M|| = M / ||M||, d M = dP P^T + P dP^T.
    const double factor = norm == 0.0 ? 0.0 : 2.0 * static_cast<double>(weight) / norm;
    const auto scale = static_cast<float>(factor * static_cast<double>(dy.data<const float>()[0]));
    const GradSlot slot = p.grad_ref().slot();
    const bool by_rows = along == Along::kRows;
    kernels::gemm(by_rows ? m->view() : p.value(), by_rows ? p.value() : m->view(), Transpose::kNo,
                  slot.grad, slot.accumulate, scale);
  });
  return output;
}

}  // namespace shardtune::adapters
