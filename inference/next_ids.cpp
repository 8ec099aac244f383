#include "inference/next_ids.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/checked.h"
#include "core/parallel_for.h"
#include "models/head.h"

namespace shardtune::inference {
namespace {

TokenBatch lay_out(std::span<const Feed> feeds) {
  TokenBatch batch;
  batch.sample_offsets.push_back(0);
  for (const Feed& feed : feeds) {
    const int64_t past = feed.cache->num_tokens();
    for (size_t i = 0; i < feed.ids.size(); ++i) {
      const auto position = narrow<int32_t>(past + static_cast<int64_t>(i));
      batch.ids.push_back(feed.ids[i]);
      batch.positions.push_back(position);
      batch.token_indices.push_back(position);
    }
    batch.sample_offsets.push_back(narrow<int32_t>(batch.num_tokens()));
    batch.sample_ids.push_back(static_cast<uint64_t>(feed.prompt));
  }
  batch.labels.assign(batch.ids.size(), kIgnoreLabel);
  return batch;
}

Tensor last_rows(const TensorView& hidden, std::span<const int32_t> offsets) {
  const int64_t count = std::ssize(offsets) - 1;
  Tensor rows(Shape{count, hidden.dim(1)}, hidden.dtype());
  for (int64_t s = 0; s < count; ++s) {
    const int64_t end = offsets[static_cast<size_t>(s) + 1];
    const TensorView from = hidden.rows(end - 1, end);
    std::memcpy(rows.view().rows(s, s + 1).raw(), from.raw(),
                static_cast<size_t>(from.num_bytes()));
  }
  return rows;
}

}  // namespace

NextIds::NextIds(models::Model& model, const std::vector<models::Hooks*>& hooks,
                 const GenerationOptions& options)
    : model_(model),
      layout_(kv_layout(model)),
      hooks_(hooks),
      num_ids_(options.num_ids > 0 ? std::min(options.num_ids, model.config().vocab_size)
                                   : model.config().vocab_size),
      max_prefill_tokens_(static_cast<size_t>(options.max_prefill_tokens)),
      sampling_(options.sampling),
      cache_(layout_) {}

Tensor NextIds::hidden_rows(std::span<const Feed> feeds) {
  const TokenBatch batch = lay_out(feeds);
  std::vector<SequenceKv*> caches;
  for (const Feed& feed : feeds)
    caches.push_back(feed.cache);
  models::ForwardOptions options;
  options.context.batch = &batch;
  options.hooks = hooks_;
  options.cache = &cache_;
  autograd::Tape tape(model_.store(), autograd::Recording::kOff);
  cache_.begin(caches, batch.sample_offsets);
  const models::Variable hidden = model_.forward(tape, options);
  cache_.end();
  return last_rows(hidden.value(), batch.sample_offsets);
}

std::vector<int32_t> NextIds::choose(std::span<const Feed> feeds) {
  const Tensor last = hidden_rows(feeds);
  std::vector<int32_t> ids(feeds.size());
  if (sampling_.is_greedy())
    models::head_argmax(model_.head(), last, num_ids_, ids);
  else
    draw_ids(last, feeds, ids);
  return ids;
}

void NextIds::draw_ids(const Tensor& last, std::span<const Feed> feeds,
                       std::span<int32_t> ids) const {
  const Tensor logits = models::head_logits(model_.head(), last);
  parallel_tasks(std::ssize(feeds), [&](int64_t i) {
    const Feed& feed = feeds[static_cast<size_t>(i)];
    const std::span<const float> row(logits.data<float>() + i * logits.dim(1),
                                     static_cast<size_t>(num_ids_));
    ids[static_cast<size_t>(i)] =
        draw(candidates(row, sampling_), draw_point(sampling_.seed, feed.draws, feed.token_index));
  });
}

int32_t NextIds::choose_after(Feed prompt) {
  const std::span<const int32_t> ids = prompt.ids;
  prompt.cache->reserve(prompt.cache->length() + std::ssize(ids) + 1);
  size_t fed = 0;
  for (; ids.size() - fed > max_prefill_tokens_; fed += max_prefill_tokens_) {
    prompt.ids = ids.subspan(fed, max_prefill_tokens_);
    feed(prompt);
  }
  prompt.ids = ids.subspan(fed);
  return choose(std::span(&prompt, 1))[0];
}

void check_options(const GenerationOptions& options) {
  if (options.max_new_tokens < 0 || options.max_concurrent < 1 || options.max_prefill_tokens < 1)
    throw ArgumentError(
        "generate: max_new_tokens, max_concurrent and max_prefill_tokens must be positive");
  check(options.sampling);
}

void check_prompt(const models::ModelConfig& config, int64_t context, std::span<const int32_t> ids,
                  const std::string& where) {
  const int64_t length = std::ssize(ids);
  if (length == 0)
    throw DataError(where +
                    ": expected at least one token, found none. Give a text that is not empty.");
  if (context > 0 && length > context)
    throw DataError(where + ": expected at most " + std::to_string(context) +
                    " tokens (the model's context), found " + std::to_string(length) +
                    ". Shorten it.");
  for (const int32_t id : ids) {
    if (id < 0 || id >= config.vocab_size)
      throw DataError(where + ": token id " + std::to_string(id) +
                      " is outside the model's vocabulary of " + std::to_string(config.vocab_size) +
                      ". Use the tokenizer that belongs to the model.");
  }
}

bool take_id(int32_t id, int64_t prompt, int64_t length, int64_t context,
             const GenerationOptions& options, const TokenCallback& on_token, Generation& result) {
  const auto& stops = options.stop_ids;
  if (std::find(stops.begin(), stops.end(), id) != stops.end()) {
    result.reason = StopReason::kStopId;
    return false;
  }
  result.ids.push_back(id);
  if (on_token)
    on_token(prompt, id);
  if (options.finished && options.finished(prompt, result.ids))
    result.reason = StopReason::kFinished;
  else if (std::ssize(result.ids) >= options.max_new_tokens)
    result.reason = StopReason::kMaxNewTokens;
  else if (context > 0 && length >= context)
    result.reason = StopReason::kContextFull;
  else
    return true;
  return false;
}

}  // namespace shardtune::inference
