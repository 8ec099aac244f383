// What a micro-batch is trained for. An objective runs the model's forward, forms its loss, and
// leaves gradients in the store. One file and one registry line each.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "autograd/tape.h"
#include "core/registry.h"
#include "models/model.h"

namespace shardtune::objectives {

struct MicroBatchResult {
  double loss_sum = 0.0;  // summed over trained tokens
  int64_t num_trained_tokens = 0;
  double extra_loss = 0.0;        // of hook (7), where ForwardOptions asked for it
  int64_t first_non_finite = -1;  // token of the batch with a NaN or infinite loss, -1 when none
};

class Objective {
 public:
  virtual ~Objective() = default;

  /// The walks over units that train() and evaluate() make on any micro-batch, for
  /// ParameterStore::begin_walk.
  virtual std::vector<UnitId> train_walk(const models::Model& model) const = 0;
  virtual std::vector<UnitId> evaluate_walk(const models::Model& model) const = 0;

  /// Forward and backward of one micro-batch; gradients of `scale` * loss_sum go to the store.
  /// `scale` is 1 / (trained tokens of the whole step), known from the plan.
  virtual MicroBatchResult train(models::Model& model, const models::ForwardOptions& options,
                                 float scale) const = 0;
  /// Forward alone, for evaluation.
  virtual MicroBatchResult evaluate(models::Model& model,
                                    const models::ForwardOptions& options) const = 0;
};

using ObjectiveFactory = std::unique_ptr<Objective> (*)();
/// "sft", "pretrain".
const Registry<ObjectiveFactory>& objectives();

}  // namespace shardtune::objectives
