#include "inference/generate.h"

#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "inference/next_ids.h"
#include "kernels/few_rows_limit.h"

namespace shardtune::inference {
namespace {

/// A prompt that is being continued.
struct Active {
  int64_t prompt = 0;    // index into the prompts
  int32_t next_id = -1;  // chosen, not yet fed
  std::unique_ptr<SequenceKv> cache;
};

/// Keys of the prompts' draws.
std::vector<uint64_t> keys_of(std::span<const std::vector<int32_t>> prompts) {
  std::map<std::span<const int32_t>, int64_t,
           decltype([](auto a, auto b) { return std::ranges::lexicographical_compare(a, b); })>
      seen;
  std::vector<uint64_t> keys;
  for (const std::vector<int32_t>& ids : prompts)
    keys.push_back(prompt_key(ids, seen[ids]++));
  return keys;
}

class Scheduler {
 public:
  Scheduler(models::Model& model, const std::vector<models::Hooks*>& hooks,
            std::span<const std::vector<int32_t>> prompts, const GenerationOptions& options,
            const TokenCallback& on_token)
      : next_ids_(model, hooks, options),
        context_(context_of(model, hooks)),
        prompts_(prompts),
        keys_(keys_of(prompts)),
        options_(options),
        on_token_(on_token),
        results_(prompts.size()) {}

  std::vector<Generation> run() {
    if (options_.max_new_tokens == 0)
      return std::move(results_);
    while (next_prompt_ < prompts_.size() || !active_.empty()) {
      while (next_prompt_ < prompts_.size() && std::ssize(active_) < options_.max_concurrent)
        admit();
      decode_step();
    }
    return std::move(results_);
  }

 private:
  /// Each prompt is fed alone: in company its products would have other bits, and where two ids are
  /// nearly as likely another one would win.
  void admit() {
    const size_t prompt = next_prompt_++;
    Active sequence{static_cast<int64_t>(prompt), -1,
                    std::make_unique<SequenceKv>(next_ids_.layout())};
    const Feed feed{sequence.cache.get(), prompts_[prompt], sequence.prompt, keys_[prompt], 0};
    const int32_t id = next_ids_.choose_after(feed);
    take(std::move(sequence), id);
  }

  void decode_step() {
    std::vector<Active> all = std::move(active_);
    active_.clear();
    constexpr auto kMost = static_cast<size_t>(kernels::kFewRows);
    for (size_t begin = 0; begin < all.size(); begin += kMost)
      decode(std::span(all).subspan(begin, std::min(kMost, all.size() - begin)));
  }

  void decode(std::span<Active> group) {
    std::vector<Feed> feeds;
    for (const Active& sequence : group) {
      const auto prompt = static_cast<size_t>(sequence.prompt);
      feeds.push_back({sequence.cache.get(), std::span(&sequence.next_id, 1), sequence.prompt,
                       keys_[prompt], std::ssize(results_[prompt].ids)});
    }
    const std::vector<int32_t> ids = next_ids_.choose(feeds);
    for (size_t i = 0; i < group.size(); ++i)
      take(std::move(group[i]), ids[i]);
  }

  void take(Active sequence, int32_t id) {
    sequence.next_id = id;
    Generation& result = results_[static_cast<size_t>(sequence.prompt)];
    if (take_id(id, sequence.prompt, sequence.cache->num_tokens(), context_, options_, on_token_,
                result))
      active_.push_back(std::move(sequence));
  }

  NextIds next_ids_;
  int64_t context_;
  std::span<const std::vector<int32_t>> prompts_;
  std::vector<uint64_t> keys_;
  const GenerationOptions& options_;
  const TokenCallback& on_token_;
  std::vector<Generation> results_;
  std::vector<Active> active_;
  size_t next_prompt_ = 0;
};

}  // namespace

int64_t context_of(const models::Model& model, const std::vector<models::Hooks*>& hooks) {
  int64_t context = model.config().max_position_embeddings;
  if (context == 0)
    return 0;
  for (const models::Hooks* each : hooks)
    context -= each->num_positions();
  if (context < 1)
    throw DataError("the adapter's virtual tokens fill the model's context of " +
                    std::to_string(model.config().max_position_embeddings) + ".");
  return context;
}

std::vector<Generation> generate(models::Model& model, const std::vector<models::Hooks*>& hooks,
                                 std::span<const std::vector<int32_t>> prompts,
                                 const GenerationOptions& options, const TokenCallback& on_token) {
  check_options(options);
  const int64_t context = context_of(model, hooks);
  for (size_t i = 0; i < prompts.size(); ++i)
    check_prompt(model.config(), context, prompts[i], "prompt " + std::to_string(i + 1));
  return Scheduler(model, hooks, prompts, options, on_token).run();
}

std::vector<int32_t> stop_ids(const data::Tokenizer& tokenizer, const models::ModelConfig& config) {
  std::vector<int32_t> ids = tokenizer.stop_ids();
  for (const int64_t id : config.eos_token_ids) {
    if (id >= 0 && id < config.vocab_size)
      ids.push_back(static_cast<int32_t>(id));
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace shardtune::inference
