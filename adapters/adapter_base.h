// What methods have in common: a table of their tensors with initial values, and options that are
// read for all of them alike.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
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

class AdapterBase : public Adapter {
 public:
  explicit AdapterBase(models::Model& model) : model_(model) {}

  const std::vector<AdapterTensor>& tensors() const override { return tensors_; }
  void initialize(const InitContext& context) override;

 protected:
  /// Whether initial values are computed from the base's weights, leased then.
  enum class Reads { kNothing, kBase };
  struct Declaration {
    UnitId unit{};
    std::string name;
    Shape shape;
    Initializer initializer;
    Reads reads = Reads::kNothing;
    std::string prefix = kModulePrefix;
    /// Of a part of a tensor, which the store holds under a name of its own.
    std::optional<AdapterTensor::InFile> in_file = {};
    std::string file_name = {};
  };
  ParameterId declare(Declaration declaration);
  /// Adds a tensor that is saved as it is, under prefix + name.
  void add_constant(std::string prefix, std::string name, std::shared_ptr<Tensor> values);
  /// The file holds a declared tensor under a second name too.
  void name_again(std::string name, size_t tensor);
  /// Adds a trainable whose initial values the model publishes with the base.
  void add_published(AdapterTensor tensor);

  models::Model& model() const { return model_; }
  ParameterStore& store() const { return model_.store(); }
  /// Publishes values of one parameter; only its publisher calls `fill`. Collective.
  void publish(ParameterId id, const std::function<void(std::span<float>)>& fill) const;

  /// x [T,N] with dropped elements in training when p > 0, else x itself. `site`: a number of its
  /// own for each place of a layer.
  static autograd::Variable drop_elements(autograd::Tape& tape, const autograd::Variable& x,
                                          double p, const models::PassContext& context,
                                          uint64_t site);

 private:
  models::Model& model_;
  std::vector<AdapterTensor> tensors_;
  struct Initial {
    Initializer fill;
    Reads reads = Reads::kNothing;
  };
  std::vector<Initial> initials_;  // of tensors_; empty for constants and what the base publishes
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
  FrontTokens front_tokens() const override {
    if constexpr (requires { options_.front_tokens(); })
      return options_.front_tokens();
    else
      return {};
  }
  std::vector<std::string> element_states() const override {
    if constexpr (requires { options_.element_states(); })
      return options_.element_states();
    else
      return {};
  }
  void check_total_steps(int64_t total_steps) const override {
    if constexpr (requires { options_.check_total_steps(total_steps); })
      options_.check_total_steps(total_steps);
  }
  models::TrainedBase trained_base(const models::ModelConfig&) const override {
    if constexpr (requires { options_.targets; })
      return trained_base_of(options_.targets);
    else
      return {};
  }
  std::unique_ptr<Adapter> attach(models::Model& model) const override {
    auto adapter = std::make_unique<Method>(options_, model);
    if constexpr (requires { adapter->add_trained_tensors(); })
      adapter->add_trained_tensors();
    return adapter;
  }

 private:
  Options options_;
};

/// num_virtual_tokens, which has no default, and what else PEFT writes for methods that have it.
int64_t read_num_virtual_tokens(const OptionReader& reader);

}  // namespace shardtune::adapters
