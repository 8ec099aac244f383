#include "trainer/limit.h"

#include <cstdio>
#include <numeric>

#include "core/log.h"
#include "core/parallel_for.h"
#include "kernels/gemm_int8.h"
#include "kernels/gemm_rate.h"

namespace shardtune::trainer {

StepFlops step_flops(const Job& job, const data::StepPlan& plan) {
  double weights = 0.0;
  for (const models::BaseLinear* linear : job.model->linears()) {
    if (!linear->is_trained())  // else among the trainables
      weights +=
          static_cast<double>(linear->in_features()) * static_cast<double>(linear->out_features());
  }
  double rows = 0.0;  // elements of trained tables: no product meets all of them for each token
  for (const models::VocabularyTable* table : job.model->tables()) {
    if (table->is_trained())
      rows += static_cast<double>(table->vocab_size()) * static_cast<double>(table->hidden_size());
  }
  const adapters::FrontTokens front = job.config.adapter.options->front_tokens();
  double tokens = 0.0;  // virtual ones in the rows too
  double pairs = 0.0;   // of a query and a key, over all samples
  for (const data::MicroBatchPlan& micro_batch : plan.micro_batches) {
    tokens += static_cast<double>(micro_batch.num_rows());
    for (const int64_t sample : micro_batch.samples) {
      const auto length =
          static_cast<double>(std::ssize(job.train_set.samples[sample].ids) + front.rows);
      pairs += length * ((length + 1.0) / 2.0 + static_cast<double>(front.positions - front.rows));
    }
  }
  const models::ModelConfig& config = job.model->config();
  const auto trained = static_cast<double>(plan.num_trained_tokens);
  const double forwards = job.config.training.gradient_checkpointing ? 2.0 : 1.0;
  const double attention = 4.0 * pairs * static_cast<double>(config.q_features()) *
                           static_cast<double>(config.num_layers);
  StepFlops flops;
  flops.linears = 2.0 * weights * tokens * (forwards + 1.0);
  if (job.config.model.computes_in_int8() && kernels::has_fast_int8())
    flops.linears /= 2.0;
  // What makes virtual tokens works on them alone, once per micro-batch.
  const double adapted = front.positions > 0 ? static_cast<double>(front.positions) *
                                                   static_cast<double>(plan.micro_batches.size())
                                             : tokens;
  flops.adapters = 2.0 * (static_cast<double>(job.store->num_trainable_elements()) - rows) *
                   adapted * (forwards + 2.0);
  flops.attention = attention * (forwards + 2.5);
  flops.head = (job.model->head().is_trained() ? 6.0 : 4.0) *
               static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size) *
               trained;
  return flops;
}

double measure_compute_rate(const Job& job, int64_t first_step) {
  job.comm.barrier();  // all measure at once, as they will compute
  const std::vector<double> rates =
      job.comm.all_gather_value(kernels::measure_gemm_rate(job.compute_dtype));
  const double rate = std::accumulate(rates.begin(), rates.end(), 0.0);
  const data::StepPlan step = job.plan->step(first_step);
  const double per_token = step_flops(job, step).sum() / static_cast<double>(step.num_tokens);
  char text[192];
  std::snprintf(text, sizeof text,
                "limit: products run at %.0f GFLOP/s (%s, ranks %d x threads %d); step %lld needs "
                "%.1f MFLOP per token, so at most %.0f tokens/s",
                rate / 1e9, std::string(name_of(job.compute_dtype)).c_str(), job.comm.world_size(),
                num_threads(), static_cast<long long>(first_step + 1), per_token / 1e6,
                rate / per_token);
  log_info(text);
  return rate;
}

}  // namespace shardtune::trainer
