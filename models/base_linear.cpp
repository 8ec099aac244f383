#include "models/base_linear.h"

#include "autograd/ops.h"
#include "core/activity.h"
#include "kernels/elementwise.h"

namespace shardtune::models {

BaseLinear::BaseLinear(std::string path, int index, std::unique_ptr<quant::FrozenWeight> weight,
                       ParameterId bias)
    : path_(std::move(path)), index_(index), weight_(std::move(weight)), bias_(bias) {}

std::string BaseLinear::leaf_name() const { return path_.substr(path_.rfind('.') + 1); }

Variable BaseLinear::forward(Tape& tape, const Variable& x, DType dtype) const {
  const ActivityScope activity(Activity::kLinears);
  Tensor y(Shape{x.dim(0), out_features()}, dtype);
  if (in_int8())
    int8_->matmul(x.value(), y, autograd::Accumulate::kNo);
  else
    weight_->matmul(x.value(), y, autograd::Accumulate::kNo);
  if (bias_ != kNoParameter)
    kernels::add_bias(tape.store().value(bias_), y);
  const Variable weight = is_trained() ? tape.parameter(trained_weight_) : Variable();
  const Variable bias = bias_ != kNoParameter ? tape.trained(bias_) : Variable();
  Variable output = tape.result(std::move(y), {x, weight, bias}, x.dtype());
  tape.record(output, [this, way = way_back(x, weight, bias)](Tensor& dy) { go_back(dy, way); });
  return output;
}

Variable BaseLinear::forward_with_low_rank(Tape& tape, const Variable& x, const Variable& seen,
                                           const autograd::LowRank& update) const {
  if (in_int8() || bias_ != kNoParameter || is_trained() || seen.dtype() != x.dtype())
    return autograd::low_rank_update(tape, forward(tape, x, DType::kFloat32), seen, update);
  autograd::UnmadeProduct product;
  product.shape = Shape{x.dim(0), out_features()};
  product.y = tape.unmade(product.shape, {x}, x.dtype());
  product.make = [&](const kernels::LowRankTerm& term, const TensorView& sum) {
    const ActivityScope activity(Activity::kLinears);
    weight_->matmul_with_low_rank(x.value(), term, sum);
  };
  {
    const ActivityScope activity(Activity::kLinears);
    tape.record(product.y, [this, way = way_back(x, {}, {})](Tensor& dy) { go_back(dy, way); });
  }
  return autograd::low_rank_update(tape, product, seen, update);
}

BaseLinear::WayBack BaseLinear::way_back(const Variable& x, const Variable& weight,
                                         const Variable& bias) const {
  WayBack way{x.dtype(), x.grad_ref(), weight.grad_ref(), bias.grad_ref(), {}};
  if (is_trained())
    way.saved_x = x;
  return way;
}

void BaseLinear::go_back(Tensor& dy, const WayBack& way) const {
  if (way.bias.wanted()) {
    const autograd::GradSlot slot = way.bias.slot();
    kernels::sum_rows(dy, slot.grad, slot.accumulate);
  }
  if (in_int8()) {
    if (!way.x.wanted())
      return;
    const autograd::GradSlot slot = way.x.slot();
    return int8_->matmul_transposed(dy, slot.grad, slot.accumulate);
  }
  Tensor converted;
  TensorView gradient = dy.view();
  if (dy.dtype() != way.dtype) {
    converted = Tensor(dy.shape(), way.dtype);
    kernels::cast(dy, converted);
    gradient = converted.view();
  }
  if (way.weight.wanted()) {
    const autograd::GradSlot slot = way.weight.slot();
    kernels::gemm_over_tokens(gradient, way.saved_x.value(), slot.grad, slot.accumulate);
  }
  if (!way.x.wanted())
    return;
  const autograd::GradSlot slot = way.x.slot();
  weight_->matmul_transposed(gradient, slot.grad, slot.accumulate);
}

}  // namespace shardtune::models
