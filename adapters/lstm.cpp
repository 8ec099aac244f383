// Legend: n tokens, h hidden.
#include "adapters/lstm.h"

#include <cstring>
#include <vector>

#include "autograd/matrix_ops.h"
#include "autograd/ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Activation;
using kernels::Transpose;

/// x [n,w] in columns [begin, begin + w) of zeros [n,width]: a product with rows of the identity.
Variable widen(Tape& tape, const Variable& x, int64_t begin, int64_t width) {
  Tensor place = Tensor::zeros(Shape{x.dim(1), width}, DType::kFloat32);
  for (int64_t i = 0; i < x.dim(1); ++i)
    place.data<float>()[i * width + begin + i] = 1.0f;
  return autograd::matmul(tape, x, Variable::constant(std::move(place)), Transpose::kNo);
}

Variable gate(Tape& tape, const Variable& gates, int64_t index, Activation activation) {
  const int64_t h = gates.dim(1) / 4;
  return autograd::activate(tape, activation,
                            autograd::slice_columns(tape, gates, index * h, (index + 1) * h));
}

/// Outputs [n,h] of one direction, in the order of the tokens.
Variable run(Tape& tape, const Variable& x, const LstmWeights& weights, bool is_reverse) {
  const int64_t n = x.dim(0), h = weights.weight_hh.dim(1);
  const Variable inputs = autograd::add_row(
      tape,
      autograd::add_row(tape, autograd::matmul(tape, x, weights.weight_ih, Transpose::kYes),
                        weights.bias_ih),
      weights.bias_hh);
  Variable outputs = Variable::constant(Tensor::zeros(Shape{n, h}, DType::kFloat32));
  Variable hidden, cell;
  for (int64_t i = 0; i < n; ++i) {
    const auto token = static_cast<int32_t>(is_reverse ? n - 1 - i : i);
    Variable gates = autograd::gather_rows(tape, inputs, {token});
    if (hidden.defined()) {
      gates = autograd::add(tape, gates,
                            autograd::matmul(tape, hidden, weights.weight_hh, Transpose::kYes));
    }
    const Variable in = gate(tape, gates, 0, Activation::kSigmoid);
    const Variable candidate = gate(tape, gates, 2, Activation::kTanh);
    Variable next = autograd::mul(tape, in, candidate);
    if (cell.defined()) {
      const Variable forget = gate(tape, gates, 1, Activation::kSigmoid);
      next = autograd::add(tape, autograd::mul(tape, forget, cell), next);
    }
    cell = next;
    hidden = autograd::mul(tape, gate(tape, gates, 3, Activation::kSigmoid),
                           autograd::activate(tape, Activation::kTanh, cell));
    outputs = autograd::place_rows(tape, outputs, hidden, {token});
  }
  return outputs;
}

}  // namespace

Variable bidirectional_lstm(Tape& tape, const Variable& x, const LstmWeights& forward,
                            const LstmWeights& reverse) {
  const int64_t h = forward.weight_hh.dim(1);
  return autograd::add(tape, widen(tape, run(tape, x, forward, false), 0, 2 * h),
                       widen(tape, run(tape, x, reverse, true), h, 2 * h));
}

}  // namespace shardtune::adapters
