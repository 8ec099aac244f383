#include "trainer/non_finite.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/activity.h"

namespace shardtune::trainer {
namespace {

/// Place of a token in the files, e.g. "train.jsonl:12 (sample 11, token 5)".
std::string describe_token(const Job& job, const data::MicroBatchPlan& micro_batch, int64_t token) {
  const TokenBatch batch = data::collate(job.train_set.samples, micro_batch);
  const auto after = std::upper_bound(batch.sample_offsets.begin(), batch.sample_offsets.end(),
                                      static_cast<int32_t>(token));
  const auto index = static_cast<size_t>(after - batch.sample_offsets.begin() - 1);
  const data::Sample& sample = job.train_set.samples[micro_batch.samples.at(index)];
  const data::Record& record = job.train_set.records[sample.record];
  return record.file + ":" + std::to_string(record.line) + " (sample " + std::to_string(sample.id) +
         ", token " + std::to_string(token - batch.sample_offsets[index]) + ")";
}

std::string describe_samples(const Job& job, const data::MicroBatchPlan& micro_batch) {
  std::string text;
  constexpr size_t kMaxNamed = 8;
  for (size_t i = 0; i < micro_batch.samples.size() && i < kMaxNamed; ++i) {
    const data::Sample& sample = job.train_set.samples[micro_batch.samples[i]];
    const data::Record& record = job.train_set.records[sample.record];
    text += (i == 0 ? "" : ", ") + record.file + ":" + std::to_string(record.line) + " (sample " +
            std::to_string(sample.id) + ")";
  }
  return micro_batch.samples.size() > kMaxNamed ? text + ", ..." : text;
}

bool has_non_finite(std::span<const float> values) {
  return std::any_of(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
}

/// The first trainable, in order of declaration, whose value or gradient is bad; "" when none.
std::string first_bad_tensor(Job& job) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  int64_t first = kNone;
  for (const auto& segment : job.store->segments()) {
    if (has_non_finite(segment.gradient) || has_non_finite(segment.parameter))
      first = std::min(first, static_cast<int64_t>(segment.id));
  }
  first = job.comm.all_reduce_min(first);
  return first == kNone ? "" : job.store->spec(static_cast<ParameterId>(first)).name;
}

/// Whether the gradient of these samples alone is bad. Collective; rank 0 computes.
bool is_bad_alone(Job& job, const data::MicroBatchPlan& micro_batch, const StepScale& scale) {
  parallel::ShardedParameterStore& store = *job.store;
  store.begin_step(1);
  int64_t bad = 0;
  if (store.micro_batch_of_round(0) >= 0)
    bad = run_micro_batch(job, micro_batch, 0, scale).first_non_finite >= 0 ? 1 : 0;
  else
    replay_micro_batch(job);
  store.end_round();
  store.finish_gradients();
  const bool finite = std::isfinite(store.gradient_square_sum());
  return !finite || job.comm.all_reduce_max(bad) > 0;
}

data::MicroBatchPlan only_sample(const Job& job, int64_t index) {
  data::MicroBatchPlan plan;
  plan.samples = {index};
  const data::Sample& sample = job.train_set.samples[index];
  plan.num_tokens = static_cast<int64_t>(sample.ids.size());
  plan.num_trained_tokens = std::count(sample.trained.begin(), sample.trained.end(), uint8_t{1});
  return plan;
}

std::string find_bad_samples(Job& job, const data::StepPlan& plan, const StepScale& scale) {
  for (const data::MicroBatchPlan& micro_batch : plan.micro_batches) {
    if (!is_bad_alone(job, micro_batch, scale))
      continue;
    for (const int64_t index : micro_batch.samples) {
      const data::MicroBatchPlan alone = only_sample(job, index);
      if (micro_batch.samples.size() > 1 && is_bad_alone(job, alone, scale))
        return describe_samples(job, alone);
    }
    return describe_samples(job, micro_batch);
  }
  return "no sample alone, only their sum";
}

TokenBatch lay_out(const Job& job, const data::MicroBatchPlan& micro_batch) {
  const ActivityScope activity(Activity::kData);
  return data::collate(job.train_set.samples, micro_batch);
}

}  // namespace

objectives::MicroBatchResult run_micro_batch(Job& job, const data::MicroBatchPlan& micro_batch,
                                             int64_t m, const StepScale& scale) {
  const TokenBatch batch = lay_out(job, micro_batch);
  models::ForwardOptions options = forward_options(job, scale.step);
  options.context.batch = &batch;
  std::vector<double> extra_losses;
  if (m == 0 && scale.extra_loss == StepScale::ExtraLoss::kWithFirst)
    options.extra_losses = &extra_losses;
  job.store->begin_walk(job.objective->train_walk(*job.model));
  job.store->begin_micro_batch(m);
  const auto result = job.objective->train(
      *job.model, options, static_cast<float>(1.0 / static_cast<double>(scale.num_trained_tokens)));
  job.store->end_walk();
  return result;
}

void replay_micro_batch(Job& job) {
  job.store->begin_walk(job.objective->train_walk(*job.model));
  job.store->end_walk();
}

void throw_non_finite(Job& job, const data::StepPlan& plan, int64_t step,
                      const FirstNonFinite& bad) {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  const int64_t first_m = job.comm.all_reduce_min(bad.micro_batch >= 0 ? bad.micro_batch : kNone);
  const std::string tensor = first_bad_tensor(job);
  std::string where;
  std::string what;
  if (first_m != kNone) {
    const int64_t token = job.comm.all_reduce_max(bad.micro_batch == first_m ? bad.token : -1);
    where = describe_token(job, plan.micro_batches[first_m], token);
    what = tensor.empty() ? "the loss is NaN or infinite (tensor: logits)"
                          : "the loss is NaN or infinite (tensor: " + tensor + ")";
  } else {
    where =
        find_bad_samples(job, plan, {step, plan.num_trained_tokens, StepScale::ExtraLoss::kNone});
    what = "NaN or infinity in the gradient of " + (tensor.empty() ? "a tensor" : tensor);
  }
  throw NonFiniteError(
      "step " + std::to_string(step + 1) + ": " + what + "; sample: " + where +
      ". Stopped before the update; the newest checkpoint is untouched. Look at this sample, or "
      "lower training.learning_rate, and resume.");
}

}  // namespace shardtune::trainer
