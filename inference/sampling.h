// The choice of the next token from logits: greedy, or drawn after temperature, top-k and top-p, in
// this order. A draw is keyed by seed, prompt and index of the token, so that threads, batches and
// the order of prompts change nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shardtune::inference {

struct SamplingOptions {
  double temperature = 0.0;  // 0: greedy, the first id among equals
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;        // 1: all
  uint64_t seed = 0;
  bool is_greedy() const { return temperature == 0.0; }
};
/// ArgumentError: a value out of range.
void check(const SamplingOptions& options);

/// An id that may be drawn, with its probability.
struct Candidate {
  int32_t id = 0;
  double probability = 0.0;
};

/// What may be drawn: softmax(logits / temperature), of it the ids whose logit is at least the
/// top_k-th (equals stay), of these the fewest whose probability among them reaches top_p, the
/// lower id first among equals; normalised. In a fixed order, all in fp64. Ids below 1e-30 of the
/// most probable one are left out: no draw can hit them.
/// Errors  NonFiniteError: a logit that is NaN or +infinity
/// Source  transformers 5.23: TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper; Holtzman
///         et al. 2020 (nucleus sampling), arXiv:1904.09751
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options);

/// The id at `point` in [0, 1) of the candidates laid end to end.
int32_t draw(std::span<const Candidate> candidates, double point);

/// What tells one prompt's draws from another's: its ids, and how many equal prompts stand before
/// it. A prompt therefore gets the same draws alone and in a file, at any place.
uint64_t prompt_key(std::span<const int32_t> ids, int64_t num_equal_before);
/// The point in [0, 1), of 53 bits, of a prompt's new token by Philox.
double draw_point(uint64_t seed, uint64_t prompt_key, int64_t token_index);

}  // namespace shardtune::inference
