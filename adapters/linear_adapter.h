// What methods that change single linears have in common: which linears, and their tensors.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "adapters/adapter_base.h"
#include "adapters/target_modules.h"

namespace shardtune::adapters {

class LinearAdapter : public AdapterBase {
 public:
  explicit LinearAdapter(models::Model& model)
      : AdapterBase(model), slots_(model.linears().size()) {}

  bool wraps(const models::BaseLinear& linear) const override {
    return !slots_[static_cast<size_t>(linear.index())].empty();
  }
  bool mergeable() const override { return true; }
  /// Takes in what the model trains of the base, under PEFT's names; when all targets are declared.
  void add_trained_tensors();

 protected:
  /// Declares a trainable of a linear: its name is the linear's path + suffix.
  ParameterId declare(const models::BaseLinear& linear, const std::string& suffix, Shape shape,
                      Initializer initializer, Reads reads = Reads::kNothing);

  /// The n-th trainable declared for a linear.
  ParameterId id_of(const models::BaseLinear& linear, size_t n) const {
    return slots_[static_cast<size_t>(linear.index())].at(n);
  }
  /// PEFT's fan_in_fan_out: how the base's files hold the wrapped weights, no matter to the
  /// adapter.
  bool wraps_conv1d() const;
  /// The configuration with what is trained of the base.
  static io::Json with_trained_parts(io::Json config, const TargetModules& targets);
  /// target_modules as they are written: the linears that the adapter wraps.
  std::vector<std::string> wrapped_targets() const;

  /// x with dropped elements in training when p > 0, else x itself.
  autograd::Variable drop(autograd::Tape& tape, const models::BaseLinear& linear,
                          const autograd::Variable& x, const models::PassContext& context,
                          double p) const {
    return drop(tape, static_cast<uint64_t>(linear.index()), x, context, p);
  }
  /// The same at a place that is no linear; `site` is above every index of one.
  autograd::Variable drop(autograd::Tape& tape, uint64_t site, const autograd::Variable& x,
                          const models::PassContext& context, double p) const;
  /// Random numbers of a linear in one micro-batch of a step, whichever rank it is on.
  static CounterRng rng_of(const models::BaseLinear& linear, const models::PassContext& context);
  /// Whether training leaves the adapter out of a linear in this micro-batch, with probability p;
  /// never in a dry run, which counts the most.
  static bool drops_module(const models::BaseLinear& linear, const models::PassContext& context,
                           double p);

 private:
  std::vector<std::vector<ParameterId>> slots_;  // by BaseLinear::index()
};

/// What PEFT writes for every method that changes single linears, null or empty.
void add_common_peft_keys(std::vector<std::pair<std::string, io::Json>>& own,
                          const std::vector<std::string>& targets);

/// rows (+)= scale * a [n,k] b [k,in], rounded as a product of its own.
void add_product(const TensorView& a, const TensorView& b, float scale, const TensorView& rows);

/// Refuses a rank above the narrow side of a linear, where one is to be trained.
/// Errors  ConfigError naming key and linear
void check_rank(const std::string& key, int64_t rank, const models::BaseLinear& linear);

}  // namespace shardtune::adapters
