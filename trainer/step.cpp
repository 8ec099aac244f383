#include "trainer/step.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/activity.h"
#include "optim/clip.h"
#include "parallel/loss_sum.h"
#include "trainer/collective.h"
#include "trainer/non_finite.h"
#include "trainer/step_hooks.h"

namespace shardtune::trainer {
namespace {

data::StepPlan plan_of_step(const Job& job, int64_t step) {
  const ActivityScope activity(Activity::kData);
  return job.plan->step(step);
}

/// Steps this rank's ranges. Offloaded states can fail on one rank alone: all ranks end then.
void update_weights(Job& job, double learning_rate, int64_t step) {
  const auto update = [&] {
    job.states->step(learning_rate, job.config.optimizer.weight_decay, step);
  };
  if (job.config.parallel.offload_optimizer.is_nvme())
    run_on_all_ranks(job.comm, update);
  else
    update();
}

}  // namespace

// Where units are gathered, all ranks have the error at the same lease. Elsewhere each reads its
// own file at its own pace, and they meet when all are through.
void run_walk(Job& job, const std::function<void()>& body) {
  if (!job.config.parallel.offload_param.is_nvme()) {
    body();
    return;
  }
  const bool is_gathered =
      job.store->stage() == parallel::ZeroStage::k3 && job.comm.world_size() > 1;
  try {
    if (is_gathered)
      body();
    else
      run_on_all_ranks(job.comm, body);
  } catch (const parallel::AgreedError& error) {
    job.store->abandon_walk();
    job.store->cancel_step();
    throw UnreadableBase(error.exit_code(), error.what());
  }
}

StepResult train_step(Job& job, int64_t step) {
  parallel::ShardedParameterStore& store = *job.store;
  const data::StepPlan plan = plan_of_step(job, step);
  const auto num_micro_batches = static_cast<int64_t>(plan.micro_batches.size());

  // Gradients and losses of all micro-batches; micro-batch m runs on rank m mod world_size.
  FirstNonFinite bad;
  double extra_loss = 0.0;
  parallel::LossSum losses(job.comm);
  losses.begin(num_micro_batches);
  store.begin_step(num_micro_batches);
  for (int64_t round = 0; round < store.num_rounds(); ++round) {
    const int64_t m = store.micro_batch_of_round(round);
    job.comm.note_progress({step + 1, round});
    run_walk(job, [&] {
      if (m < 0) {
        replay_micro_batch(job);
        return;
      }
      const auto result =
          run_micro_batch(job, plan.micro_batches[m], m, {step, plan.num_trained_tokens});
      losses.add(m, {result.loss_sum, static_cast<double>(result.num_trained_tokens)});
      bad.note(m, result.first_non_finite);
      extra_loss += result.extra_loss;
    });
    store.end_round();
  }
  const ActivityScope activity(Activity::kOptimizer);
  store.finish_gradients();
  const parallel::LossTotal loss = losses.finish();
  const double grad_norm = std::sqrt(store.gradient_square_sum());
  // Both numbers have the same bits on all ranks, so all take the same branch.
  if (!std::isfinite(loss.sum) || !std::isfinite(grad_norm))
    throw_non_finite(job, plan, step, bad);

  // Clip, update this rank's ranges, bring the new weights to all ranks.
  const float clip = optim::clip_coefficient(grad_norm, job.config.training.max_grad_norm);
  for (const auto& segment : store.segments())
    optim::scale_gradient(segment.gradient, clip);
  const double learning_rate = job.schedule->learning_rate(step);
  update_weights(job, learning_rate, step + 1);
  run_step_hooks(store, job.comm, *job.adapter, step);
  store.publish_updates();
  job.adapter->renew_base();
  job.comm.note_progress({});
  return {loss.mean(),       extra_loss,           grad_norm,
          learning_rate,     plan.num_tokens,      plan.num_trained_tokens,
          num_micro_batches, step_flops(job, plan)};
}

void probe_longest_micro_batch(Job& job, int64_t first_step) {
  parallel::ShardedParameterStore& store = *job.store;
  const data::MicroBatchPlan longest = job.plan->longest_micro_batch(job.last_step);
  store.begin_step(job.comm.world_size());
  run_micro_batch(job, longest, job.comm.rank(), {first_step, longest.num_trained_tokens});
  store.cancel_step();
}

void check_weights_finite(Job& job, int64_t step) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  int64_t first = kNone;
  for (const auto& segment : job.store->segments()) {
    for (const float value : segment.parameter) {
      if (!std::isfinite(value))
        first = std::min(first, static_cast<int64_t>(segment.id));
    }
  }
  first = job.comm.all_reduce_min(first);
  if (first != kNone) {
    throw NonFiniteError("after step " + std::to_string(step) + ": " +
                         job.store->spec(static_cast<ParameterId>(first)).name +
                         ": expected finite weights, found NaN or infinity. Nothing was "
                         "saved; lower training.learning_rate and resume.");
  }
}

}  // namespace shardtune::trainer
