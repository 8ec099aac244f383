// Merge-aware training: the base's linears hold Q(W + scale * B A), Q being the frozen format, and
// are quantised anew when A and B have changed, so that the merged checkpoint in that format has
// the weights that were trained with. The original W stays with the rank that publishes the
// linear's codes, in a form of quant/kept_weight.h: sharded by tensors at every stage.
#pragma once

#include <memory>
#include <vector>

#include "adapters/adapter.h"
#include "autograd/ops.h"
#include "quant/kept_weight.h"

namespace shardtune::adapters {

class RequantisedBase {
 public:
  RequantisedBase(models::Model& model, quant::KeptForm form) : model_(model), form_(form) {}

  /// A linear with the trainables and the scale of its change.
  /// Errors  ConfigError: a format that is no quantiser, products in int8
  void add(models::BaseLinear& linear, const autograd::LowRank& change);
  /// Reads the original weights of those that this rank keeps.
  void keep(const models::ModelSource& source, const Adapter::Keeps& keeps);
  /// Quantises every linear anew. Collective, between walks.
  /// Errors  NonFiniteError: A or B are not finite, the same on all ranks
  void requantise() const;

 private:
  struct Changed {
    models::BaseLinear* linear;
    autograd::LowRank change;
    std::unique_ptr<quant::KeptWeight> kept;  // null: another rank's
  };
  void requantise_unit(std::span<const Changed> linears) const;

  models::Model& model_;
  quant::KeptForm form_;
  std::vector<Changed> linears_;  // those of a unit side by side
};

}  // namespace shardtune::adapters
