#include "inference/sampling.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "core/rng.h"

namespace shardtune::inference {
namespace {

constexpr double kNegligible = 1e-30;

bool comes_first(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
}

void check_logit(float logit, size_t id) {
  if (std::isnan(logit) || logit == INFINITY)
    throw NonFiniteError("sampling: the logit of token " + std::to_string(id) +
                         " is NaN or infinite. Check the model's weights.");
}

/// exp((logit - max) / temperature), in order of ids.
std::vector<Candidate> weights_of(std::span<const float> logits, double temperature) {
  for (size_t id = 0; id < logits.size(); ++id)
    check_logit(logits[id], id);
  const double max = *std::max_element(logits.begin(), logits.end());
  std::vector<Candidate> all;
  for (size_t id = 0; id < logits.size(); ++id) {
    const double weight = std::exp((static_cast<double>(logits[id]) - max) / temperature);
    if (weight >= kNegligible)
      all.push_back({static_cast<int32_t>(id), weight});
  }
  return all;
}

void keep_top_k(std::vector<Candidate>& all, int64_t top_k) {
  if (top_k <= 0 || top_k >= std::ssize(all))
    return;
  std::vector<Candidate> ordered = all;
  const auto last = ordered.begin() + (top_k - 1);
  std::nth_element(ordered.begin(), last, ordered.end(), comes_first);
  const double least = last->probability;
  std::erase_if(all, [&](const Candidate& candidate) { return candidate.probability < least; });
}

double sum_of(const std::vector<Candidate>& all) {
  double sum = 0.0;
  for (const Candidate& candidate : all)
    sum += candidate.probability;
  return sum;
}

/// Few ids hold most of the probability: only as many are sorted as it takes.
void keep_top_p(std::vector<Candidate>& all, double top_p) {
  if (top_p >= 1.0)
    return;
  const double wanted = top_p * sum_of(all);
  for (size_t sorted = 64;; sorted *= 8) {
    sorted = std::min(sorted, all.size());
    std::partial_sort(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(sorted), all.end(),
                      comes_first);
    double reached = 0.0;
    size_t kept = 0;
    while (kept < sorted && (kept == 0 || reached < wanted))
      reached += all[kept++].probability;
    if (reached >= wanted || sorted == all.size())
      return all.resize(kept);
  }
}

}  // namespace

void check(const SamplingOptions& options) {
  if (!(options.temperature >= 0.0 && std::isfinite(options.temperature)) || options.top_k < 0 ||
      !(options.top_p > 0.0 && options.top_p <= 1.0))
    throw ArgumentError(
        "sampling: expected a temperature and top_k of at least 0 and top_p in (0, 1]");
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  SHARDTUNE_ASSERT(!logits.empty() && options.temperature > 0.0);
  std::vector<Candidate> all = weights_of(logits, options.temperature);
  keep_top_k(all, options.top_k);
  keep_top_p(all, options.top_p);
  const double sum = sum_of(all);
  for (Candidate& candidate : all)
    candidate.probability /= sum;
  return all;
}

int32_t draw(std::span<const Candidate> candidates, double point) {
  double passed = 0.0;
  for (const Candidate& candidate : candidates) {
    passed += candidate.probability;
    if (point < passed)
      return candidate.id;
  }
  return candidates.back().id;
}

uint64_t prompt_key(std::span<const int32_t> ids, int64_t num_equal_before) {
  uint64_t key = mix_key(ids.size(), {static_cast<uint64_t>(num_equal_before)});
  for (const int32_t id : ids)
    key = mix_key(key, {static_cast<uint64_t>(id)});
  return key;
}

double draw_point(uint64_t seed, uint64_t prompt_key, int64_t token_index) {
  const auto index = static_cast<uint64_t>(token_index);
  const auto words =
      philox(mix_key(seed, {prompt_key}),
             {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0});
  const uint64_t bits = (static_cast<uint64_t>(words[0]) << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace shardtune::inference
