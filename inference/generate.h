// Decoding of many prompts, greedy or sampled, with continuous batching: every decode step runs one
// token of each active sequence in one flat batch, finished sequences leave and waiting prompts
// take their place.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/tokenizer.h"
#include "inference/sampling.h"
#include "models/model.h"

namespace shardtune::inference {

struct GenerationOptions {
  int64_t max_new_tokens = 256;
  SamplingOptions sampling;           // greedy unless a temperature is set
  std::vector<int32_t> stop_ids;      // end a sequence; not part of its ids
  int64_t num_ids = 0;                // the tokenizer's; no id from here on is chosen. 0: all
  int64_t max_concurrent = 32;        // sequences decoded together
  int64_t max_prefill_tokens = 2048;  // of one forward pass; longer prompts go in pieces
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

/// Tokens that the model's context has room for beside what the adapter puts before them; 0: no
/// end. DataError: for none.
int64_t context_of(const models::Model& model, const std::vector<models::Hooks*>& hooks);

/// The continuation of each prompt: at every position the id of the largest logit, the first among
/// equals, or the one that `sampling` draws. `hooks` are the adapter's (may be empty).
/// Exact   does not depend on threads, on the other prompts, on their order or on max_concurrent:
///         prompts are fed alone, and products of one token of each of up to kernels::kFewRows
///         sequences have the bits of each alone. (Of equal prompts, each draws anew.)
/// Errors  DataError: an empty prompt, one longer than the model's context, an id outside the
///         vocabulary; ArgumentError: options out of range; NonFiniteError: no logits to draw from
std::vector<Generation> generate(models::Model& model, const std::vector<models::Hooks*>& hooks,
                                 std::span<const std::vector<int32_t>> prompts,
                                 const GenerationOptions& options,
                                 const TokenCallback& on_token = {});

/// Ids that end an answer: the tokenizer's and the model's, in order, each once.
std::vector<int32_t> stop_ids(const data::Tokenizer& tokenizer, const models::ModelConfig& config);

}  // namespace shardtune::inference
