// What methods that change single linears have in common: which linears, a table of their tensors,
// initial values, and options that all of them read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "adapters/adapter.h"
#include "adapters/target_modules.h"
#include "core/rng.h"

namespace shardtune::adapters {

/// Fills the initial values of one tensor; `rng` is keyed by the tensor's name.
using Initializer = std::function<void(const CounterRng& rng, std::span<float> values)>;
Initializer constant_values(float value);
/// N(0, deviation^2).
Initializer normal_values(float deviation);
/// U(-bound, bound).
Initializer uniform_values(float bound);
/// torch's kaiming_uniform_(a = sqrt 5): U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
Initializer kaiming_values(int64_t fan_in);

class LinearAdapter : public Adapter {
 public:
  explicit LinearAdapter(models::Model& model) : model_(model), slots_(model.linears().size()) {}

  const std::vector<AdapterTensor>& tensors() const override { return tensors_; }
  void initialize(const InitContext& context) override;
  bool wraps(const models::BaseLinear& linear) const override {
    return !slots_[static_cast<size_t>(linear.index())].empty();
  }
  bool mergeable() const override { return true; }
  /// Takes in what the model trains of the base, under PEFT's names; when all targets are declared.
  void add_trained_tensors();

 protected:
  /// Whether initial values are computed from the base's weights, leased then.
  enum class Reads { kNothing, kBase };
  /// Declares a trainable of a linear: its name is the linear's path + suffix.
  ParameterId declare(const models::BaseLinear& linear, const std::string& suffix, Shape shape,
                      Initializer initializer, Reads reads = Reads::kNothing);
  /// Adds a tensor that is saved as it is, under prefix + name.
  void add_constant(std::string prefix, std::string name, std::shared_ptr<Tensor> values);

  /// The n-th trainable declared for a linear.
  ParameterId id_of(const models::BaseLinear& linear, size_t n) const {
    return slots_[static_cast<size_t>(linear.index())].at(n);
  }
  models::Model& model() const { return model_; }
  ParameterStore& store() const { return model_.store(); }
  /// PEFT's fan_in_fan_out: how the base's files hold the wrapped weights, no matter to the
  /// adapter.
  bool wraps_conv1d() const;
  /// The configuration with what is trained of the base.
  static io::Json with_trained_parts(io::Json config, const TargetModules& targets);
  /// target_modules as they are written: the linears that the adapter wraps.
  std::vector<std::string> wrapped_targets() const;

  /// Publishes values of one parameter; only its publisher calls `fill`. Collective.
  void publish(ParameterId id, const std::function<void(std::span<float>)>& fill) const;
  /// x with dropped elements in training when p > 0, else x itself.
  autograd::Variable drop(autograd::Tape& tape, const models::BaseLinear& linear,
                          const autograd::Variable& x, const models::PassContext& context,
                          double p) const;

 private:
  models::Model& model_;
  std::vector<std::vector<ParameterId>> slots_;  // by BaseLinear::index()
  std::vector<AdapterTensor> tensors_;
  struct Initial {
    Initializer fill;
    Reads reads = Reads::kNothing;
  };
  std::vector<Initial> initials_;  // of tensors_; empty for constants
};

/// AdapterOptions of a method whose Options have keys() and whose class takes (Options, Model).
template <typename Method, typename Options>
class MethodOptions : public AdapterOptions {
 public:
  explicit MethodOptions(Options options) : options_(std::move(options)) {}
  std::string_view method() const override { return Method::kName; }
  std::vector<std::pair<std::string, std::string>> keys() const override {
    auto keys = options_.keys();
    keys.emplace_back("method", std::string(Method::kName));
    return keys;
  }
  models::TrainedBase trained_base(const models::ModelConfig&) const override {
    return trained_base_of(options_.targets);
  }
  std::unique_ptr<Adapter> attach(models::Model& model) const override {
    auto adapter = std::make_unique<Method>(options_, model);
    adapter->add_trained_tensors();
    return adapter;
  }

 private:
  Options options_;
};

/// A key of PEFT's that a run cannot have yet; a saved adapter may, as it concerns training alone.
void refuse_in_run(const OptionReader& reader, const std::string& key);

/// What PEFT writes for every method that changes single linears, null or empty.
void add_common_peft_keys(std::vector<std::pair<std::string, io::Json>>& own,
                          const std::vector<std::string>& targets);

/// rows (+)= scale * a [n,k] b [k,in], rounded as a product of its own.
void add_product(const TensorView& a, const TensorView& b, float scale, const TensorView& rows);

/// Refuses a rank above the narrow side of a linear, where one is to be trained.
/// Errors  ConfigError naming key and linear
void check_rank(const std::string& key, int64_t rank, const models::BaseLinear& linear);

}  // namespace shardtune::adapters
