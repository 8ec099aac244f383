// Greedy decoding of many prompts with continuous batching: prompts enter in groups of bounded
// size, every decode step runs one token of each active sequence in one flat batch, finished
// sequences leave and waiting prompts take their place.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "models/model.h"

namespace shardtune::inference {

struct GenerationOptions {
  int64_t max_new_tokens = 256;
  std::vector<int32_t> stop_ids;  // end a sequence; not part of its ids
  int64_t num_ids = 0;          // the tokenizer's; no id from here on is chosen. 0: all of the head
  int64_t max_concurrent = 32;  // sequences decoded together
  int64_t max_prefill_tokens =
      2048;  // prompt tokens of one forward pass; longer prompts go in chunks
  /// Asked after each new token with the prompt's new tokens so far; true ends the sequence
  /// (kFinished). Empty: never.
  std::function<bool(int64_t prompt, std::span<const int32_t> ids)> finished;
};

enum class StopReason { kStopId, kMaxNewTokens, kContextFull, kFinished };

struct Generation {
  std::vector<int32_t> ids;  // new tokens, without the prompt and the stop id
  StopReason reason = StopReason::kMaxNewTokens;
};

/// Called for every new token that is not a stop id, in order of each prompt's tokens.
using TokenCallback = std::function<void(int64_t prompt, int32_t id)>;

/// The continuation of each prompt: at every position the id of the largest logit, the first among
/// equals. `hooks` are the adapter's (may be empty).
/// Exact   does not depend on threads; nor on the other prompts as far as products give the same
///         bits for other numbers of rows
/// Errors  DataError: an empty prompt, one longer than the model's context, an id outside the
///         vocabulary; ArgumentError: options that are not positive
std::vector<Generation> generate_greedy(models::Model& model,
                                        const std::vector<models::Hooks*>& hooks,
                                        std::span<const std::vector<int32_t>> prompts,
                                        const GenerationOptions& options,
                                        const TokenCallback& on_token = {});

}  // namespace shardtune::inference
