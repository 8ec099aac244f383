#include "trainer/evaluate.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "data/plan.h"
#include "objectives/objective.h"
#include "parallel/loss_sum.h"

namespace shardtune::trainer {
namespace {

/// NonFiniteError on every rank when any micro-batch had a bad loss. Collective.
void check_finite(const data::Dataset& dataset, const std::vector<data::MicroBatchPlan>& plan,
                  parallel::Communicator& comm, int64_t bad_micro_batch) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  const int64_t first = comm.all_reduce_min(bad_micro_batch >= 0 ? bad_micro_batch : kNone);
  if (first == kNone)
    return;
  const data::Sample& sample = dataset.samples[plan[first].samples.at(0)];
  const data::Record& record = dataset.records[sample.record];
  throw NonFiniteError(
      "evaluation: the loss is NaN or infinite in the micro-batch that begins "
      "with " +
      record.file + ":" + std::to_string(record.line) +
      ". Check the model's weights and this sample.");
}

}  // namespace

LossResult evaluate_loss(models::Model& model, const data::Dataset& dataset,
                         parallel::Communicator& comm, const EvaluateOptions& options) {
  const auto plan =
      data::plan_evaluation(dataset.samples, options.max_tokens, options.num_virtual_tokens());
  const auto num_micro_batches = static_cast<int64_t>(plan.size());
  const auto objective = objectives::objectives().at("sft")();
  parallel::LossSum losses(comm);
  losses.begin(num_micro_batches);
  int64_t bad_micro_batch = -1;
  int64_t samples_done = 0;
  const std::vector<UnitId> walk = objective->evaluate_walk(model);
  const int64_t num_ranks = comm.world_size();
  for (int64_t first = 0; first < num_micro_batches; first += num_ranks) {
    const int64_t m = first + comm.rank();
    comm.note_progress({});
    const auto run = [&] {
      model.store().begin_walk(walk);
      if (m < num_micro_batches) {
        const TokenBatch batch = data::collate(dataset.samples, plan[m]);
        models::ForwardOptions forward;
        forward.context.batch = &batch;
        forward.hooks = options.hooks;
        const auto result = objective->evaluate(model, forward);
        losses.add(m, {result.loss_sum, static_cast<double>(result.num_trained_tokens)});
        if (result.first_non_finite >= 0 && bad_micro_batch < 0)
          bad_micro_batch = m;
      }
      model.store().end_walk();
    };
    if (options.run)
      options.run(run);
    else
      run();
    for (int64_t done = first; done < std::min(first + num_ranks, num_micro_batches); ++done)
      samples_done += static_cast<int64_t>(plan[done].samples.size());
    if (options.progress)
      options.progress(samples_done, static_cast<int64_t>(dataset.samples.size()));
  }
  const parallel::LossTotal total = losses.finish();
  check_finite(dataset, plan, comm, bad_micro_batch);
  return {total.mean(), std::exp(total.mean()), static_cast<int64_t>(total.count),
          static_cast<int64_t>(dataset.samples.size())};
}

}  // namespace shardtune::trainer
