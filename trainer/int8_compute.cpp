#include "trainer/int8_compute.h"

#include <chrono>
#include <cstdio>

#include "core/log.h"
#include "kernels/gemm_int8.h"
#include "trainer/step.h"

namespace shardtune::trainer {
namespace {

constexpr std::string_view kStatePrefix = "int8_migration/";

std::vector<models::Int8Migration> migration_of(const std::vector<models::NamedState>& states) {
  std::vector<models::Int8Migration> migration;
  for (const models::NamedState& state : states) {
    if (state.name.starts_with(kStatePrefix))
      migration.push_back({state.name.substr(kStatePrefix.size()), state.bytes});
  }
  return migration;
}

std::string percent(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f%%", 100.0 * value);
  return text;
}

/// One line a layer: "model.layers.0: self_attn.q_proj 0.71%, ...".
void log_errors(const std::vector<models::Int8Error>& errors) {
  std::string line, layer;
  double sum = 0.0;
  const models::Int8Error* worst = nullptr;
  for (size_t i = 0; i < errors.size(); ++i) {
    const models::Int8Error& error = errors[i];
    // A layer's linears begin alike up to the number: "model.layers.0."
    const size_t end = error.linear.find('.', error.linear.find_first_of("0123456789"));
    const std::string name = error.linear.substr(0, end);
    if (name != layer && !line.empty())
      log_info(line);
    line = name == layer ? line + ", " : "int8: " + name + ": ";
    layer = name;
    line += (end == std::string::npos ? error.linear : error.linear.substr(end + 1)) + " " +
            percent(error.relative);
    sum += error.relative;
    if (worst == nullptr || error.relative > worst->relative)
      worst = &error;
  }
  if (worst == nullptr)
    return;
  log_info(line);
  log_info("int8: relative error of the linears' outputs: mean " +
           percent(sum / static_cast<double>(errors.size())) + ", largest " +
           percent(worst->relative) + " (" + worst->linear + ")");
}

}  // namespace

data::MicroBatchPlan calibration_samples(const std::vector<data::Sample>& samples) {
  data::MicroBatchPlan plan;
  for (int64_t i = 0; i < std::ssize(samples); ++i) {
    const auto length = std::ssize(samples[static_cast<size_t>(i)].ids);
    if (i > 0 && plan.num_tokens + length > kCalibrationTokens)
      break;
    plan.samples.push_back(i);
    plan.num_tokens += length;
  }
  return plan;
}

void prepare_int8(Job& job, const CheckpointState* saved) {
  if (!job.config.model.computes_in_int8())
    return;
  if (!kernels::has_fast_int8())
    log_warning(
        "compute_dtype int8: this CPU has no AVX512-VNNI; the same bits come from 16-bit products, "
        "about as fast as 'compute_dtype: float32'");
  const TokenBatch batch =
      data::collate(job.train_set.samples, calibration_samples(job.train_set.samples));
  const auto migration =
      saved == nullptr ? std::vector<models::Int8Migration>() : migration_of(saved->hook_state);
  if (saved != nullptr && migration.empty())
    throw DataError(
        "checkpoint: state.json: expected the scales of compute_dtype int8, found none.");
  const auto start = std::chrono::steady_clock::now();
  std::vector<models::Int8Error> errors;
  run_walk(job, [&] { errors = models::prepare_int8(*job.model, batch, migration, "checkpoint"); });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  log_errors(errors);
  char text[128];
  std::snprintf(text, sizeof text, "int8: scales %s %lld tokens in %.2f s",
                saved == nullptr ? "chosen by" : "of the checkpoint checked on",
                static_cast<long long>(batch.num_tokens()), seconds.count());
  log_info(text);
}

std::vector<models::NamedState> int8_states(models::Model& model) {
  std::vector<models::NamedState> states;
  for (models::Int8Migration& linear : models::int8_migration(model))
    states.push_back({std::string(kStatePrefix) + linear.linear, std::move(linear.exponents)});
  return states;
}

std::vector<models::NamedState> without_int8_states(const std::vector<models::NamedState>& states) {
  std::vector<models::NamedState> kept;
  for (const models::NamedState& state : states) {
    if (!state.name.starts_with(kStatePrefix))
      kept.push_back(state);
  }
  return kept;
}

}  // namespace shardtune::trainer
