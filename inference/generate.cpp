#include "inference/generate.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "core/checked.h"
#include "inference/kv_cache.h"
#include "models/head.h"

namespace shardtune::inference {
namespace {

/// A prompt that is being continued.
struct Active {
  int64_t prompt = 0;    // index into the prompts
  int32_t next_id = -1;  // chosen, not yet fed
  std::unique_ptr<SequenceKv> cache;
};

/// Tokens of one sequence that one forward pass feeds.
struct Feed {
  SequenceKv* cache = nullptr;
  std::span<const int32_t> ids;
  int64_t prompt = 0;
};

void check(const models::ModelConfig& config, std::span<const std::vector<int32_t>> prompts,
           const GenerationOptions& options) {
  if (options.max_new_tokens < 0 || options.max_concurrent < 1 || options.max_prefill_tokens < 1)
    throw ArgumentError(
        "generate: max_new_tokens, max_concurrent and max_prefill_tokens must be positive");
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::string where = "prompt " + std::to_string(i + 1) + ": ";
    const auto length = static_cast<int64_t>(prompts[i].size());
    if (length == 0)
      throw DataError(where +
                      "expected at least one token, found none. Give a text that is not empty.");
    if (config.max_position_embeddings > 0 && length > config.max_position_embeddings)
      throw DataError(where + "expected at most " + std::to_string(config.max_position_embeddings) +
                      " tokens (the model's context), found " + std::to_string(length) +
                      ". Shorten it.");
    for (const int32_t id : prompts[i]) {
      if (id < 0 || id >= config.vocab_size)
        throw DataError(
            where + "token id " + std::to_string(id) + " is outside the model's vocabulary of " +
            std::to_string(config.vocab_size) + ". Use the tokenizer that belongs to the model.");
    }
  }
}

/// The forward passes over one model with its hooks.
class Decoder {
 public:
  Decoder(models::Model& model, const std::vector<models::Hooks*>& hooks, int64_t num_ids)
      : model_(model),
        layout_(kv_layout(model)),
        hooks_(hooks),
        num_ids_(num_ids > 0 ? num_ids : model.config().vocab_size),
        cache_(layout_) {}

  const KvLayout& layout() const { return layout_; }

  /// Feeds all tokens in one flat batch; returns the next id of each sequence.
  std::vector<int32_t> next_ids(std::span<const Feed> feeds) {
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
    const Tensor last = last_rows(hidden.value(), batch.sample_offsets);
    std::vector<int32_t> ids(feeds.size());
    models::head_argmax(model_.head(), last, num_ids_, ids);
    return ids;
  }

 private:
  static TokenBatch lay_out(std::span<const Feed> feeds) {
    TokenBatch batch;
    batch.sample_offsets.push_back(0);
    for (const Feed& feed : feeds) {
      const int64_t past = feed.cache->length();
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

  static Tensor last_rows(const TensorView& hidden, std::span<const int32_t> offsets) {
    const auto count = static_cast<int64_t>(offsets.size()) - 1;
    Tensor rows(Shape{count, hidden.dim(1)}, hidden.dtype());
    for (int64_t s = 0; s < count; ++s) {
      const int64_t end = offsets[static_cast<size_t>(s) + 1];
      const TensorView from = hidden.rows(end - 1, end);
      std::memcpy(rows.view().rows(s, s + 1).raw(), from.raw(),
                  static_cast<size_t>(from.num_bytes()));
    }
    return rows;
  }

  models::Model& model_;
  KvLayout layout_;
  std::vector<models::Hooks*> hooks_;
  int64_t num_ids_;
  BatchKvCache cache_;
};

class Scheduler {
 public:
  Scheduler(models::Model& model, const std::vector<models::Hooks*>& hooks,
            std::span<const std::vector<int32_t>> prompts, const GenerationOptions& options,
            const TokenCallback& on_token)
      : decoder_(model, hooks, options.num_ids),
        context_(model.config().max_position_embeddings),
        prompts_(prompts),
        options_(options),
        on_token_(on_token),
        results_(prompts.size()) {}

  std::vector<Generation> run() {
    if (options_.max_new_tokens == 0)
      return std::move(results_);
    while (next_prompt_ < prompts_.size() || !active_.empty()) {
      while (wants_prompts())
        admit_group();
      if (!active_.empty())
        decode_step();
    }
    return std::move(results_);
  }

 private:
  // New prompts enter when a quarter of the places is free: joined prefills make better use of the
  // machine than one at a time.
  bool wants_prompts() const {
    const auto active = static_cast<int64_t>(active_.size());
    const int64_t free = options_.max_concurrent - active;
    const auto waiting = static_cast<int64_t>(prompts_.size() - next_prompt_);
    const int64_t enough = std::min(std::max<int64_t>(1, options_.max_concurrent / 4), waiting);
    return waiting > 0 && free > 0 && (active == 0 || free >= enough);
  }

  void admit_group() {
    const auto limit = static_cast<size_t>(options_.max_prefill_tokens);
    size_t num_tokens = 0;
    std::vector<Active> group;
    while (next_prompt_ < prompts_.size() &&
           active_.size() + group.size() < static_cast<size_t>(options_.max_concurrent)) {
      const size_t length = prompts_[next_prompt_].size();
      if (!group.empty() && num_tokens + length > limit)
        break;
      num_tokens += length;
      group.push_back({static_cast<int64_t>(next_prompt_++), -1,
                       std::make_unique<SequenceKv>(decoder_.layout())});
    }
    // Only a group of one can be longer than the limit: its beginning is fed in chunks.
    size_t fed = 0;
    for (; num_tokens - fed > limit; fed += limit)
      decoder_.next_ids(std::array{feed_of(group.front(), fed, limit)});
    std::vector<Feed> feeds;
    for (const Active& sequence : group) {
      feeds.push_back(feed_of(sequence, fed, prompt_of(sequence).size() - fed));
      sequence.cache->reserve(static_cast<int64_t>(prompt_of(sequence).size()) + 1);
    }
    take(std::move(group), decoder_.next_ids(feeds));
  }

  const std::vector<int32_t>& prompt_of(const Active& sequence) const {
    return prompts_[static_cast<size_t>(sequence.prompt)];
  }
  Feed feed_of(const Active& sequence, size_t begin, size_t count) const {
    return {sequence.cache.get(), std::span(prompt_of(sequence)).subspan(begin, count),
            sequence.prompt};
  }

  void decode_step() {
    std::vector<Active> group = std::move(active_);
    active_.clear();
    std::vector<Feed> feeds;
    for (const Active& sequence : group)
      feeds.push_back({sequence.cache.get(), std::span(&sequence.next_id, 1), sequence.prompt});
    const std::vector<int32_t> ids = decoder_.next_ids(feeds);
    take(std::move(group), ids);
  }

  /// Adds each sequence's new id to its result; keeps those that go on.
  void take(std::vector<Active> group, const std::vector<int32_t>& ids) {
    for (size_t i = 0; i < group.size(); ++i) {
      Active& sequence = group[i];
      Generation& result = results_[static_cast<size_t>(sequence.prompt)];
      sequence.next_id = ids[i];
      const auto& stops = options_.stop_ids;
      if (std::find(stops.begin(), stops.end(), ids[i]) != stops.end()) {
        result.reason = StopReason::kStopId;
        continue;
      }
      result.ids.push_back(ids[i]);
      if (on_token_)
        on_token_(sequence.prompt, ids[i]);
      if (options_.finished && options_.finished(sequence.prompt, result.ids))
        result.reason = StopReason::kFinished;
      else if (static_cast<int64_t>(result.ids.size()) >= options_.max_new_tokens)
        result.reason = StopReason::kMaxNewTokens;
      else if (context_ > 0 && sequence.cache->length() >= context_)
        result.reason = StopReason::kContextFull;
      else
        active_.push_back(std::move(sequence));
    }
  }

  Decoder decoder_;
  int64_t context_;
  std::span<const std::vector<int32_t>> prompts_;
  const GenerationOptions& options_;
  const TokenCallback& on_token_;
  std::vector<Generation> results_;
  std::vector<Active> active_;
  size_t next_prompt_ = 0;
};

}  // namespace

std::vector<Generation> generate_greedy(models::Model& model,
                                        const std::vector<models::Hooks*>& hooks,
                                        std::span<const std::vector<int32_t>> prompts,
                                        const GenerationOptions& options,
                                        const TokenCallback& on_token) {
  check(model.config(), prompts, options);
  return Scheduler(model, hooks, prompts, options, on_token).run();
}

}  // namespace shardtune::inference
