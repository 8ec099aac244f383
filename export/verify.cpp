#include "export/verify.h"

#include <algorithm>
#include <cmath>

#include "io/file.h"
#include "models/head.h"

namespace shardtune::exporting {
namespace {

constexpr const char* kPrompt = "The capital of France is";

std::vector<int32_t> prompt_ids(const ExportRequest& request) {
  const int64_t vocab_size = request.model.config().vocab_size;
  std::vector<int32_t> ids;
  if (request.tokenizer != nullptr)
    ids = request.tokenizer->encode(kPrompt, {});
  const bool fits = !ids.empty() && std::all_of(ids.begin(), ids.end(), [&](int32_t id) {
    return id >= 0 && id < vocab_size;
  });
  if (!fits) {
    ids.clear();
    for (int64_t i = 1; i <= 8; ++i)
      ids.push_back(static_cast<int32_t>(i * 7919 % vocab_size));
  }
  return ids;
}

std::vector<float> last_logits(models::Model& model, const std::vector<int32_t>& ids,
                               const std::vector<models::Hooks*>& hooks) {
  TokenBatch batch;
  batch.ids = ids;
  for (size_t i = 0; i < ids.size(); ++i)
    batch.positions.push_back(static_cast<int32_t>(i));
  batch.token_indices = batch.positions;
  batch.labels.assign(ids.size(), kIgnoreLabel);
  batch.sample_offsets = {0, static_cast<int32_t>(ids.size())};
  batch.sample_ids = {0};
  models::ForwardOptions options;
  options.context.batch = &batch;
  options.hooks = hooks;
  models::Tape tape(model.store(), autograd::Recording::kOff);
  const models::Variable hidden = model.forward(tape, options);
  const TensorView rows = hidden.value();
  const auto last = static_cast<int64_t>(ids.size());
  const Tensor logits = models::head_logits(model.head(), rows.rows(last - 1, last));
  const auto values = logits.span<const float>();
  return {values.begin(), values.end()};
}

// Rounding moves each weight by `rounding` of its size, independently for each element, so each
// linear's output moves by as much of its own; 7 linears a layer add up on the residual stream as
// independent errors. Activations in bf16 round as much again on each side (2^-9 at most, a uniform
// error's deviation is that over sqrt(3)). 8 leaves room for what norms and attention amplify.
double tolerance_of(const ExportRequest& request, double rounding) {
  const bool has_bf16 = request.model.compute_dtype() == DType::kBFloat16;
  const double activations = std::ldexp(1.0, has_bf16 ? -9 : -18) / std::sqrt(3.0);
  const auto num_linears = static_cast<double>(7 * request.model.config().num_layers + 1);
  return 8.0 * std::max(rounding, activations) * std::sqrt(num_linears);
}

LogitsDifference difference_of(const std::vector<float>& expected,
                               const std::vector<float>& found) {
  SHARDTUNE_ASSERT(expected.size() == found.size());
  double mean = 0.0;
  for (const float x : expected)
    mean += x / static_cast<double>(expected.size());
  LogitsDifference result;
  double spread = 0.0;
  double error = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(found[i]) - expected[i];
    result.max_difference = std::max(result.max_difference, std::abs(d));
    error += d * d;
    spread += (expected[i] - mean) * (expected[i] - mean);
  }
  result.relative_rms = error == 0.0 ? 0.0 : std::sqrt(error / spread);
  return result;
}

/// Whether the base trained on holds the values of the model's files.
bool is_unchanged(const std::string& method) { return method == "none" || method == "keep"; }

}  // namespace

void compare_tensors(const io::TensorSource& source, const std::filesystem::path& path,
                     const std::map<std::string, WrittenTensor>& written) {
  if (source.tensors().size() != written.size())
    throw CorruptBlockError(path.string() + ": expected " + std::to_string(written.size()) +
                            " tensors, read back " + std::to_string(source.tensors().size()) +
                            ". Check the disk.");
  for (const auto& [name, tensor] : written) {
    const io::TensorInfo* info = source.find(name);
    const bool is_equal = info != nullptr && info->num_bytes == tensor.num_bytes &&
                          io::crc32c(source.bytes(*info)) == tensor.crc;
    if (!is_equal)
      throw CorruptBlockError(path.string() + ": " + name +
                              ": read back other bytes than were written. Check the disk.");
    source.drop(*info);
  }
}

LogitsDifference compare_logits(const ExportRequest& request, const std::filesystem::path& path,
                                double rounding) {
  const auto source = models::open_model_source(path.string());
  std::vector<int32_t> ids = prompt_ids(request);
  // A file may have a shorter context than the model has.
  ids.resize(std::min(ids.size(), static_cast<size_t>(source->config().max_position_embeddings)));
  std::vector<models::Hooks*> hooks;
  if (request.adapter != nullptr)
    hooks.push_back(request.adapter);
  const std::vector<float> expected = last_logits(request.model, ids, hooks);

  models::Model& merged = request.load_back(*source);
  LogitsDifference result = difference_of(expected, last_logits(merged, ids, {}));
  const bool same_base = request.options.merge_base == MergeBase::kTrained ||
                         is_unchanged(request.provenance.quantization.method);
  if (same_base && rounding != kNotJudged) {
    result.tolerance = tolerance_of(request, rounding);
    if (!(result.relative_rms <= result.tolerance))
      throw CorruptBlockError(
          path.string() + ": the merged model's logits differ from base + adapter by " +
          std::to_string(result.relative_rms) + " (relative RMS), allowed are " +
          std::to_string(result.tolerance) + ". Export with --dtype float32, and report this.");
  }
  return result;
}

}  // namespace shardtune::exporting
