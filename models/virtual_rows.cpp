#include "models/virtual_rows.h"

#include "autograd/matrix_ops.h"
#include "autograd/ops.h"
#include "core/checked.h"
#include "core/error.h"
#include "models/padded_batch.h"

namespace shardtune::models {
namespace {

int64_t virtual_tokens_of(const std::vector<Hooks*>& all) {
  int64_t found = 0;
  for (const Hooks* hooks : all) {
    if (found > 0 && hooks->num_virtual_tokens() > 0)
      throw UnsupportedError("two adapters with virtual tokens at once. Use one of them.");
    found += hooks->num_virtual_tokens();
  }
  return found;
}

void add_token(TokenBatch& to, int32_t id, int32_t label, int64_t position) {
  to.ids.push_back(id);
  to.labels.push_back(label);
  to.positions.push_back(narrow<int32_t>(position));
  to.token_indices.push_back(narrow<int32_t>(position));
}

/// `batch` with n more tokens, of id 0, before every sample that gets them.
TokenBatch with_virtual_tokens(const ForwardOptions& options, int64_t n, LayerBatch& layers) {
  const TokenBatch& batch = *options.context.batch;
  TokenBatch wide;
  wide.sample_offsets.push_back(0);
  wide.sample_ids = batch.sample_ids;
  wide.task_ids = batch.task_ids;
  wide.num_trained_tokens = batch.num_trained_tokens;
  for (int64_t s = 0; s < batch.num_samples(); ++s) {
    const bool is_first = options.cache == nullptr || options.cache->past_length(s) == 0;
    if (is_first)
      layers.samples.push_back(narrow<int32_t>(s));
    for (int64_t i = 0; i < n && is_first; ++i) {
      layers.virtual_rows.push_back(narrow<int32_t>(wide.num_tokens()));
      add_token(wide, 0, kIgnoreLabel, i);
    }
    const auto at = static_cast<size_t>(s);
    for (int32_t t = batch.sample_offsets[at]; t < batch.sample_offsets[at + 1]; ++t) {
      const auto token = static_cast<size_t>(t);
      layers.token_rows.push_back(narrow<int32_t>(wide.num_tokens()));
      add_token(wide, batch.ids[token], batch.labels[token], batch.positions[token]);
    }
    wide.sample_offsets.push_back(narrow<int32_t>(wide.num_tokens()));
  }
  return wide;
}

}  // namespace

LayerBatch layer_batch(const ForwardOptions& options) {
  LayerBatch layers;
  const int64_t n = virtual_tokens_of(options.hooks);
  const bool pads = options.cache == nullptr;
  TokenBatch wide = n > 0 ? with_virtual_tokens(options, n, layers) : *options.context.batch;
  if (layers.virtual_rows.empty())
    layers.token_rows.clear();
  if (!layers.token_rows.empty() && pads) {
    const auto tokens = static_cast<int64_t>(layers.token_rows.size());
    layers.token_rows.resize(static_cast<size_t>(padded_tokens(tokens)), layers.token_rows[0]);
  }
  // Tokens stand behind what the hooks put before them; virtual tokens stand where they are.
  int64_t taken = 0;
  for (const Hooks* hooks : options.hooks)
    taken += hooks->num_positions();
  for (int32_t& position : wide.positions)
    position = narrow<int32_t>(position + taken);
  int32_t place = 0;
  for (const int32_t row : layers.virtual_rows) {
    wide.positions[static_cast<size_t>(row)] = place;
    place = narrow<int32_t>((place + 1) % n);
  }
  layers.batch = pads ? pad_batch(wide) : std::make_shared<TokenBatch>(std::move(wide));
  return layers;
}

namespace {

/// For virtual_rows: the row of `num_rows` embeddings that each takes.
std::vector<int32_t> sources_of(const LayerBatch& layers, int64_t num_rows) {
  const int64_t num_virtual_tokens = std::ssize(layers.virtual_rows) / std::ssize(layers.samples);
  const int64_t num_tasks = num_rows / num_virtual_tokens;
  SHARDTUNE_ASSERT(num_rows == num_tasks * num_virtual_tokens);
  std::vector<int32_t> sources;
  for (const int32_t sample : layers.samples) {
    const std::vector<int32_t>& tasks = layers.batch->task_ids;
    const bool has_task = num_tasks > 1 && !tasks.empty();
    const int64_t task = has_task ? tasks[static_cast<size_t>(sample)] : 0;
    if (task < 0 || task >= num_tasks) {
      throw DataError("task_id: expected less than the adapter's " + std::to_string(num_tasks) +
                      " tasks, found " + std::to_string(task) + ".");
    }
    for (int64_t i = 0; i < num_virtual_tokens; ++i)
      sources.push_back(narrow<int32_t>(task * num_virtual_tokens + i));
  }
  return sources;
}

}  // namespace

// Added, not put: what stands in these rows already comes from their positions.
Variable place_virtual_rows(Tape& tape, const Variable& x, const Variable& embeddings,
                            const LayerBatch& layers) {
  const Variable own =
      autograd::gather_rows(tape, embeddings, sources_of(layers, embeddings.dim(0)));
  const Variable there = autograd::gather_rows(tape, x, layers.virtual_rows);
  return autograd::place_rows(tape, x, autograd::add(tape, own, there), layers.virtual_rows);
}

}  // namespace shardtune::models
