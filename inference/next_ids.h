// One forward pass over the new tokens of some sequences, and the choice of each one's next id.
// Private to inference/.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "inference/generate.h"
#include "inference/kv_cache.h"

namespace shardtune::inference {

/// Tokens of one sequence that one forward pass feeds.
struct Feed {
  SequenceKv* cache = nullptr;
  std::span<const int32_t> ids;
  int64_t prompt = 0;
  uint64_t draws = 0;       // the prompt's key (prompt_key)
  int64_t token_index = 0;  // of the id to be chosen, among the prompt's new ones
};

class NextIds {
 public:
  NextIds(models::Model& model, const std::vector<models::Hooks*>& hooks,
          const GenerationOptions& options);

  const KvLayout& layout() const { return layout_; }

  /// The first tokens of a prompt, whose next ids nobody asks for.
  void feed(const Feed& feed) { hidden_rows(std::span(&feed, 1)); }
  /// Feeds tokens of one sequence, or one token of each of at most kernels::kFewRows.
  std::vector<int32_t> choose(std::span<const Feed> feeds);
  /// Feeds a prompt in pieces of max_prefill_tokens and returns the id after it.
  int32_t choose_after(Feed prompt);

 private:
  Tensor hidden_rows(std::span<const Feed> feeds);
  void draw_ids(const Tensor& last, std::span<const Feed> feeds, std::span<int32_t> ids) const;

  models::Model& model_;
  KvLayout layout_;
  std::vector<models::Hooks*> hooks_;
  int64_t num_ids_;
  size_t max_prefill_tokens_;
  SamplingOptions sampling_;
  BatchKvCache cache_;
};

/// ArgumentError: options out of range.
void check_options(const GenerationOptions& options);
/// DataError naming `where`: no ids, more than the context holds, ids outside the vocabulary.
void check_prompt(const models::ModelConfig& config, int64_t context, std::span<const int32_t> ids,
                  const std::string& where);

/// Takes a chosen id into a prompt's result; true when the sequence goes on. `length`: tokens
/// in its cache.
bool take_id(int32_t id, int64_t prompt, int64_t length, int64_t context,
             const GenerationOptions& options, const TokenCallback& on_token, Generation& result);

}  // namespace shardtune::inference
