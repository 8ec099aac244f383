// The sums of a set of samples, and taking an evaluation set out of it.
#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "core/rng.h"
#include "data/dataset.h"

namespace shardtune::data {
namespace {

int64_t wanted_count(double share_or_count, int64_t num_samples) {
  const bool is_share = share_or_count < 1.0;
  const double count =
      is_share ? share_or_count * static_cast<double>(num_samples) : share_or_count;
  // The comparison comes first: a count may be larger than any integer.
  if (count >= static_cast<double>(num_samples) || num_samples < 2)
    throw ConfigError("data.eval_split: expected fewer samples than data.train has (" +
                      std::to_string(num_samples) + "), found " +
                      (is_share ? "a share of them" : std::to_string(std::llround(count))) +
                      ". Lower it, or name files under data.eval.");
  return std::clamp<int64_t>(std::llround(count), 1, num_samples - 1);
}

/// Moves the chosen samples, in order; their records are copied to the new set.
Dataset take(Dataset& dataset, const std::vector<uint8_t>& chosen) {
  Dataset taken;
  std::vector<Sample> kept;
  int64_t last_record = -1;
  for (std::size_t i = 0; i < dataset.samples.size(); ++i) {
    Sample& sample = dataset.samples[i];
    if (!chosen[i]) {
      kept.push_back(std::move(sample));
      continue;
    }
    if (sample.record != last_record)  // samples stand in the order of their records
      taken.records.push_back(dataset.records[static_cast<std::size_t>(sample.record)]);
    last_record = sample.record;
    sample.record = static_cast<int64_t>(taken.records.size()) - 1;
    taken.samples.push_back(std::move(sample));
  }
  dataset.samples = std::move(kept);
  return taken;
}

}  // namespace

DatasetStats stats_of(const std::vector<Sample>& samples) {
  DatasetStats stats;
  stats.num_samples = static_cast<int64_t>(samples.size());
  for (const Sample& sample : samples) {
    const auto length = static_cast<int64_t>(sample.ids.size());
    stats.num_tokens += length;
    stats.num_trained_tokens += std::count(sample.trained.begin(), sample.trained.end(), 1);
    stats.num_truncated += sample.cut == Cut::kNone ? 0 : 1;
    stats.num_truncated_answers += sample.cut == Cut::kAnswer ? 1 : 0;
    stats.max_sample_tokens = std::max(stats.max_sample_tokens, length);
  }
  return stats;
}

Dataset split_off(Dataset& dataset, double share_or_count, uint64_t seed) {
  const auto num_samples = static_cast<int64_t>(dataset.samples.size());
  const int64_t count = wanted_count(share_or_count, num_samples);
  // A word for each sample by its id; the smallest are chosen, ties by id.
  const CounterRng rng(mix_key(seed, "data.eval_split"));
  std::vector<std::pair<uint32_t, int64_t>> order;
  for (int64_t i = 0; i < num_samples; ++i)
    order.emplace_back(rng.bits(dataset.samples[static_cast<std::size_t>(i)].id), i);
  std::nth_element(order.begin(), order.begin() + count, order.end());
  std::vector<uint8_t> chosen(dataset.samples.size(), 0);
  for (int64_t i = 0; i < count; ++i)
    chosen[static_cast<std::size_t>(order[static_cast<std::size_t>(i)].second)] = 1;
  Dataset taken = take(dataset, chosen);
  dataset.stats = stats_of(dataset.samples);
  taken.stats = stats_of(taken.samples);
  return taken;
}

}  // namespace shardtune::data
