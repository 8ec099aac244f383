// Next-token cross-entropy over the labels of the batch. Supervised fine-tuning and continued
// pretraining differ in the labels that `data` sets, not in the loss.
#include "objectives/sft.h"

#include "models/head.h"

namespace shardtune::objectives {

namespace {

using autograd::Recording;
using autograd::Tape;
using autograd::Variable;

class NextToken : public Objective {
 public:
  MicroBatchResult train(models::Model& model, const models::ForwardOptions& options,
                         float scale) const override {
    Tape tape(model.store(), Recording::kOn);
    const Variable hidden = model.forward(tape, options);
    models::HeadLoss loss = models::head_cross_entropy(tape, model.head(), hidden,
                                                       options.context.batch->labels, scale);
    const MicroBatchResult result{loss.loss_sum, loss.num_trained_tokens, loss.first_non_finite};
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
    return {loss.loss_sum, loss.num_trained_tokens, loss.first_non_finite};
  }
};

}  // namespace

std::unique_ptr<Objective> make_next_token() { return std::make_unique<NextToken>(); }

}  // namespace shardtune::objectives
