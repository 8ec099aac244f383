// Next-token cross-entropy over the labels of the batch. Supervised fine-tuning and continued
// pretraining differ in the labels that `data` sets, not in the loss.
#include "objectives/sft.h"

#include <numeric>

#include "models/head.h"

namespace shardtune::objectives {

namespace {

using autograd::Recording;
using autograd::Tape;
using autograd::Variable;

class NextToken : public Objective {
 public:
  std::vector<UnitId> train_walk(const models::Model& model) const override {
    const std::vector<UnitId> forward = model.forward_units();
    std::vector<UnitId> walk = forward_and_head(model, Recording::kOn);
    for (auto unit = forward.rbegin(); unit != forward.rend(); ++unit) {
      if (*unit != kFetchRows)  // embeddings have no backward
        walk.push_back(*unit);
    }
    return walk;
  }

  std::vector<UnitId> evaluate_walk(const models::Model& model) const override {
    return forward_and_head(model, Recording::kOff);
  }

  MicroBatchResult train(models::Model& model, const models::ForwardOptions& options,
                         float scale) const override {
    Tape tape(model.store(), Recording::kOn);
    const Variable hidden = model.forward(tape, options);
    models::HeadLoss loss = models::head_cross_entropy(tape, model.head(), hidden,
                                                       options.context.batch->labels, scale);
    MicroBatchResult result = result_of(loss);
    if (options.extra_losses != nullptr)
      result.extra_loss =
          std::accumulate(options.extra_losses->begin(), options.extra_losses->end(), 0.0);
    if (result.first_non_finite < 0)
      tape.backward(hidden, std::move(loss.hidden_grad));
    return result;
  }

  MicroBatchResult evaluate(models::Model& model,
                            const models::ForwardOptions& options) const override {
    Tape tape(model.store(), Recording::kOff);
    const Variable hidden = model.forward(tape, options);
    const models::HeadLoss loss =
        models::head_cross_entropy(tape, model.head(), hidden, options.context.batch->labels, 1.0f);
    return result_of(loss);
  }

 private:
  static MicroBatchResult result_of(const models::HeadLoss& loss) {
    MicroBatchResult result;
    result.loss_sum = loss.loss_sum;
    result.num_trained_tokens = loss.num_trained_tokens;
    result.first_non_finite = loss.first_non_finite;
    return result;
  }
  static std::vector<UnitId> forward_and_head(const models::Model& model, Recording recording) {
    std::vector<UnitId> walk = model.forward_units();
    const std::vector<UnitId> head = models::head_units(model.head(), recording);
    walk.insert(walk.end(), head.begin(), head.end());
    return walk;
  }
};

}  // namespace

std::unique_ptr<Objective> make_next_token() { return std::make_unique<NextToken>(); }

}  // namespace shardtune::objectives
