// The reverse-mode tape over coarse operations. Forward operations compute at once and record how
// to go back; backward() walks the records in reverse and frees what each one saved as soon as it
// has run. Frozen weights and inputs that need no gradient record nothing.
//
// Parameters: records hold ParameterIds, never views. Model code runs a unit's work inside
// Tape::in_unit(); backward leases the unit again for the same operations, and hands the finished
// gradients to the store when the unit's last use has been passed.
#pragma once

#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/activity.h"
#include "core/parameter_store.h"
#include "core/tensor.h"
#include "kernels/gemm.h"

namespace shardtune::autograd {

using kernels::Accumulate;

/// Where an operation's backward puts a gradient: it writes all of it, or adds to all of it.
struct GradSlot {
  TensorView grad;
  Accumulate accumulate = Accumulate::kNo;
};

/// The gradient side of a value. Records of an input's consumers hold this alone when backward does
/// not need the value, so that values die as early as they can.
class GradRef {
 public:
  GradRef() = default;
  bool wanted() const { return state_ != nullptr; }
  /// Slot for one contribution. Call only when wanted().
  GradSlot slot() const;
  /// Contribution of a whole tensor: taken over when it is the first and of the right dtype, added
  /// otherwise.
  void give(Tensor&& gradient) const;

 private:
  friend class Variable;
  friend class Tape;
  struct State {
    Shape shape;
    DType dtype = DType::kFloat32;
    Tensor grad;
  };
  std::shared_ptr<State> state_;
};

/// A value on the tape. Copies are handles to one value. (Shared ownership: a value lives until the
/// last operation that saved it has gone backward.)
class Variable {
 public:
  Variable() = default;
  /// A value without gradient.
  static Variable constant(Tensor value);
  /// A value that somebody else keeps alive, without gradient.
  static Variable constant_view(const TensorView& value);
  /// A value whose gradient is wanted and can be read with grad() after backward.
  static Variable leaf(Tensor value);

  bool defined() const { return value_ != nullptr; }
  /// For a parameter valid while its unit is leased.
  TensorView value() const;
  Shape shape() const { return value().shape(); }
  DType dtype() const { return value().dtype(); }
  int64_t dim(int i) const { return value().dim(i); }
  int64_t numel() const { return value().numel(); }
  bool requires_grad() const { return grad_.wanted(); }
  const GradRef& grad_ref() const { return grad_; }
  /// The same value without its gradient: what a record saves of its own output.
  Variable without_grad() const {
    Variable variable;
    variable.value_ = value_;
    return variable;
  }
  /// Gradient so far; empty when no operation contributed.
  TensorView grad() const;

 private:
  friend class Tape;
  struct Value {
    Tensor owned;
    TensorView view;
    const ParameterStore* store = nullptr;  // set for a parameter: its value is asked for each time
    ParameterId parameter = kNoParameter;
  };
  std::shared_ptr<Value> value_;
  GradRef grad_;
};

/// Whether operations record their way back.
enum class Recording { kOn, kOff };

class Tape {
 public:
  Tape(ParameterStore& store, Recording recording);
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  bool recording() const { return recording_ == Recording::kOn; }
  ParameterStore& store() const { return store_; }

  /// A trainable parameter as a Variable (f32). The same id is the same Variable on one tape.
  Variable parameter(ParameterId id);
  /// parameter(id) where it is trained; undefined where it is frozen.
  Variable trained(ParameterId id) {
    return store_.spec(id).kind == ParameterKind::kTrainable ? parameter(id) : Variable();
  }
  /// A frozen f32 parameter as a Variable without gradient, valid while its unit is leased.
  Variable frozen(ParameterId id) const;
  /// Whether an operation with these inputs must record its way back.
  bool needs_grad(std::initializer_list<Variable> inputs) const;

  /// The result of an operation; it wants a gradient when needs_grad(inputs). grad_dtype is the
  /// dtype its gradient is summed in.
  Variable result(Tensor value, std::initializer_list<Variable> inputs,
                  DType grad_dtype = DType::kFloat32);
  /// The gradient side of a result that is never made: another operation computes more from the
  /// same inputs at once, and hands back the gradient of this. It has no value.
  Variable unmade(const Shape& shape, std::initializer_list<Variable> inputs, DType grad_dtype);
  /// The result of an operation that changed the buffer of `changed` in place. Only for buffers
  /// that no record saved: results of products, which their own backward does not need.
  Variable result_in_place(const Variable& changed, std::initializer_list<Variable> inputs);
  /// Records the way back of an operation. `backward` gets the gradient of `output`, which it may
  /// move from; it runs once, and not at all when no gradient arrived. Its time counts for the
  /// activity of the caller (core/activity.h).
  void record(const Variable& output, std::function<void(Tensor& doutput)> backward);

  /// Adds a loss [1] to what backward() goes back from.
  void add_loss(const Variable& loss);

  /// Keeps something alive until the tape dies: tables that records point into.
  void keep(std::shared_ptr<const void> owner) { root().kept_.push_back(std::move(owner)); }

  /// Runs body with the unit leased.
  void in_unit(UnitId unit, const std::function<void()>& body);

  /// Runs body(tape, input) keeping only `input`; backward runs it again and goes back through it.
  /// Random numbers are counter-based, so the second run gives the same values.
  using Body = std::function<Variable(Tape&, const Variable&)>;
  Variable checkpoint(const Variable& input, const Body& body);

  /// Goes back from `output`, whose gradient is `seed` (taken over), then hands the parameter
  /// gradients that no unit has flushed to the store.
  void backward(const Variable& output, Tensor seed);

 private:
  struct Record {
    std::shared_ptr<GradRef::State> output;  // null: a boundary, always run
    std::function<void(Tensor&)> run;
    Activity activity = ActivityScope::current();
  };
  Tape(Tape& parent, Recording recording, Pass pass);
  Tape& root() { return parent_ == nullptr ? *this : parent_->root(); }
  void run_records();
  void flush(ParameterId id);
  void leave_unit(UnitId unit);

  ParameterStore& store_;
  Recording recording_;
  Pass pass_ = Pass::kForward;
  Tape* parent_ = nullptr;
  bool touched_parameters_ = false;
  std::vector<Record> records_;
  // Of the root only: shared by the tapes of recomputed bodies.
  std::map<ParameterId, Variable> parameters_;
  std::map<UnitId, int> uses_of_unit_;  // forward uses that backward has not passed yet
  std::map<UnitId, std::vector<UnitLease>> leases_;
  std::vector<std::shared_ptr<const void>> kept_;
};

}  // namespace shardtune::autograd
