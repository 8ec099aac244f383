#include "models/base_linear.h"

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
  Variable output = tape.result(std::move(y), {x}, x.dtype());
  tape.record(output,
              [this, dtype = x.dtype(), x = x.grad_ref()](Tensor& dy) { go_back(dy, dtype, x); });
  return output;
}

void BaseLinear::go_back(Tensor& dy, DType dtype, const autograd::GradRef& x) const {
  if (in_int8()) {
    const autograd::GradSlot slot = x.slot();
    return int8_->matmul_transposed(dy, slot.grad, slot.accumulate);
  }
  Tensor converted;
  TensorView gradient = dy.view();
  if (dy.dtype() != dtype) {
    converted = Tensor(dy.shape(), dtype);
    kernels::cast(dy, converted);
    gradient = converted.view();
  }
  const autograd::GradSlot slot = x.slot();
  weight_->matmul_transposed(gradient, slot.grad, slot.accumulate);
}

}  // namespace shardtune::models
