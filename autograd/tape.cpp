#include "autograd/tape.h"

#include <utility>

#include "kernels/elementwise.h"

namespace shardtune::autograd {

GradSlot GradRef::slot() const {
  SHARDTUNE_ASSERT(wanted());
  if (!state_->grad.empty())
    return {state_->grad.view(), Accumulate::kYes};
  state_->grad = Tensor(state_->shape, state_->dtype);
  return {state_->grad.view(), Accumulate::kNo};
}

void GradRef::give(Tensor&& gradient) const {
  SHARDTUNE_ASSERT(wanted() && gradient.numel() == state_->shape.numel());
  if (state_->grad.empty() && gradient.dtype() == state_->dtype) {
    state_->grad = std::move(gradient);
    return;
  }
  const GradSlot target = slot();
  kernels::copy_scaled(gradient.view().reshaped(target.grad.shape()), target.grad,
                       target.accumulate);
}

Variable Variable::constant(Tensor value) {
  Variable variable;
  variable.value_ = std::make_shared<Value>();
  variable.value_->view = value.view();
  variable.value_->owned = std::move(value);
  return variable;
}

Variable Variable::constant_view(const TensorView& value) {
  Variable variable;
  variable.value_ = std::make_shared<Value>();
  variable.value_->view = value;
  return variable;
}

Variable Variable::leaf(Tensor value) {
  Variable variable = constant(std::move(value));
  variable.grad_.state_ = std::make_shared<GradRef::State>();
  variable.grad_.state_->shape = variable.shape();
  return variable;
}

TensorView Variable::value() const {
  SHARDTUNE_ASSERT(defined());
  if (value_->store != nullptr)
    return value_->store->value(value_->parameter);
  return value_->view;
}

TensorView Variable::grad() const {
  return grad_.wanted() ? grad_.state_->grad.view() : TensorView();
}

Tape::Tape(ParameterStore& store, Recording recording) : store_(store), recording_(recording) {}

Tape::Tape(Tape& parent, Recording recording, Pass pass)
    : store_(parent.store_), recording_(recording), pass_(pass), parent_(&parent) {}

Variable Tape::parameter(ParameterId id) {
  touched_parameters_ = true;
  std::map<ParameterId, Variable>& known = root().parameters_;
  const auto found = known.find(id);
  if (found != known.end())
    return found->second;
  Variable variable;
  variable.value_ = std::make_shared<Variable::Value>();
  variable.value_->store = &store_;
  variable.value_->parameter = id;
  variable.grad_.state_ = std::make_shared<GradRef::State>();
  variable.grad_.state_->shape = store_.spec(id).shape;
  known.emplace(id, variable);
  return variable;
}

Variable Tape::frozen(ParameterId id) const {
  Variable variable;
  variable.value_ = std::make_shared<Variable::Value>();
  variable.value_->store = &store_;
  variable.value_->parameter = id;
  return variable;
}

bool Tape::needs_grad(std::initializer_list<Variable> inputs) const {
  if (!recording())
    return false;
  for (const Variable& input : inputs) {
    if (input.requires_grad())
      return true;
  }
  return false;
}

Variable Tape::unmade(const Shape& shape, std::initializer_list<Variable> inputs,
                      DType grad_dtype) {
  Variable output;
  if (needs_grad(inputs)) {
    output.grad_.state_ = std::make_shared<GradRef::State>();
    output.grad_.state_->shape = shape;
    output.grad_.state_->dtype = grad_dtype;
  }
  return output;
}

Variable Tape::result(Tensor value, std::initializer_list<Variable> inputs, DType grad_dtype) {
  Variable output = unmade(value.shape(), inputs, grad_dtype);
  output.value_ = Variable::constant(std::move(value)).value_;
  return output;
}

Variable Tape::result_in_place(const Variable& changed, std::initializer_list<Variable> inputs) {
  Variable output;
  output.value_ = changed.value_;
  if (needs_grad(inputs)) {
    output.grad_.state_ = std::make_shared<GradRef::State>();
    output.grad_.state_->shape = changed.shape();
    output.grad_.state_->dtype =
        changed.requires_grad() ? changed.grad_.state_->dtype : changed.dtype();
  }
  return output;
}

void Tape::record(const Variable& output, std::function<void(Tensor& doutput)> backward) {
  if (output.requires_grad())
    records_.push_back({output.grad_.state_, std::move(backward)});
}

void Tape::add_loss(const Variable& loss) {
  if (!needs_grad({loss}))
    return;
  records_.push_back({nullptr, [gradient = loss.grad_ref()](Tensor&) {
                        Tensor one(Shape{1}, DType::kFloat32);
                        one.data<float>()[0] = 1.0f;
                        gradient.give(std::move(one));
                      }});
}

void Tape::in_unit(UnitId unit, const std::function<void()>& body) {
  if (pass_ == Pass::kForward)
    ++root().uses_of_unit_[unit];
  if (recording())
    records_.push_back({nullptr, [this, unit](Tensor&) { leave_unit(unit); }});
  {
    const UnitLease lease = store_.acquire(unit, pass_);
    body();
  }
  if (recording()) {
    records_.push_back({nullptr, [this, unit](Tensor&) {
                          root().leases_[unit].push_back(store_.acquire(unit, Pass::kBackward));
                        }});
  }
}

void Tape::leave_unit(UnitId unit) {
  Tape& owner = root();
  owner.leases_[unit].pop_back();
  if (--owner.uses_of_unit_[unit] > 0)
    return;
  for (const auto& [id, variable] : owner.parameters_) {
    if (store_.spec(id).unit == unit)
      owner.flush(id);
  }
}

void Tape::flush(ParameterId id) {
  GradRef::State& state = *parameters_.at(id).grad_.state_;
  if (state.grad.empty())
    return;
  store_.grad(id, state.grad.view());
  state.grad = Tensor();
}

Variable Tape::checkpoint(const Variable& input, const Body& body) {
  Tape forward(*this, Recording::kOff, pass_);
  Tensor value;
  bool has_trainables = false;
  {
    const Variable inside = body(forward, input);
    value = inside.value_.use_count() == 1 && !inside.value_->owned.empty()
                ? std::move(inside.value_->owned)
                : Tensor();
    if (value.empty()) {
      value = Tensor(inside.shape(), inside.dtype());
      kernels::cast(inside.value(), value);
    }
    has_trainables = forward.touched_parameters_;
  }
  touched_parameters_ = touched_parameters_ || has_trainables;
  Variable output = Variable::constant(std::move(value));
  if (!recording() || !(has_trainables || input.requires_grad()))
    return output;
  output.grad_.state_ = std::make_shared<GradRef::State>();
  output.grad_.state_->shape = output.shape();
  record(output, [this, input, body](Tensor& doutput) {
    Tape again(*this, Recording::kOn, Pass::kRecompute);
    Variable inside = Variable::constant_view(input.value());
    if (input.requires_grad()) {
      inside.grad_.state_ = std::make_shared<GradRef::State>();
      inside.grad_.state_->shape = input.shape();
      inside.grad_.state_->dtype = input.grad_.state_->dtype;
    }
    const Variable result = body(again, inside);
    result.grad_.give(std::move(doutput));
    again.run_records();
    if (inside.requires_grad() && !inside.grad().empty())
      input.grad_.give(std::move(inside.grad_.state_->grad));
  });
  return output;
}

void Tape::run_records() {
  while (!records_.empty()) {
    Record record = std::move(records_.back());
    records_.pop_back();
    Tensor gradient;
    if (record.output != nullptr) {
      if (record.output->grad.empty())
        continue;
      gradient = std::move(record.output->grad);
    }
    const ActivityScope activity(record.activity);
    record.run(gradient);
  }
}

void Tape::backward(const Variable& output, Tensor seed) {
  SHARDTUNE_ASSERT(parent_ == nullptr && recording());
  if (output.requires_grad())
    output.grad_.give(std::move(seed));
  run_records();
  for (const auto& [id, variable] : parameters_)
    flush(id);
}

}  // namespace shardtune::autograd
