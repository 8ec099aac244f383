#include "adapters/rank_allocator.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "core/error.h"
#include "core/parallel_for.h"
#include "kernels/elementwise.h"

namespace shardtune::adapters {

using kernels::kShardGranule;
using models::UpdatedRange;

namespace {

constexpr int64_t kGrain = 1 << 14;

enum State : size_t { kImportance, kUncertainty };

/// Of one factor of a linear.
int64_t numel_of(const RankAllocator::Linear& linear, RankAllocator::Factor factor, int64_t rank) {
  return rank * (factor == RankAllocator::kA   ? linear.in_features
                 : factor == RankAllocator::kB ? linear.out_features
                                               : 1);
}

}  // namespace

int64_t RankSchedule::budget(int64_t step, int64_t num_linears) const {
  const auto first = static_cast<double>(init_r * num_linears);
  const auto last = static_cast<double>(target_r * num_linears);
  const double left =
      1.0 - static_cast<double>(step - tinit) / static_cast<double>(total_step - tfinal - tinit);
  return static_cast<int64_t>((first - last) * std::pow(left, 3.0) + last);
}

void RankAllocator::add(const Linear& linear) {
  for (const Factor factor : {kA, kE, kB})
    places_[linear.ids[factor]] = {linears_.size(), factor};
  linears_.push_back(linear);
}

// ipt = |p g|; I = beta1 I + (1 - beta1) ipt; U = beta2 U + (1 - beta2) |ipt - I|.
void RankAllocator::on_update(int64_t step, const UpdatedRange& piece) {
  const auto found = places_.find(piece.id);
  if (found == places_.end())
    return;
  const std::span<float> importance = piece.states.at(kImportance);
  const std::span<float> uncertainty = piece.states.at(kUncertainty);
  if (schedule_.updates_importance(step)) {
    const auto b1 = static_cast<float>(schedule_.beta1);
    const auto c1 = static_cast<float>(1.0 - schedule_.beta1);
    const auto b2 = static_cast<float>(schedule_.beta2);
    const auto c2 = static_cast<float>(1.0 - schedule_.beta2);
    parallel_for(std::ssize(piece.parameter), kGrain, [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        const float ipt = std::abs(piece.parameter[i] * piece.clipped_gradient[i]);
        importance[i] = b1 * importance[i] + c1 * ipt;
        uncertainty[i] = b2 * uncertainty[i] + c2 * std::abs(ipt - importance[i]);
      }
    });
  }
  if (schedule_.allocates(step))
    add_up(found->second, piece);
}

void RankAllocator::add_up(const Place& place, const UpdatedRange& piece) {
  const int64_t rank = schedule_.init_r;
  const Linear& linear = linears_[place.linear];
  sums_.resize(linears_.size());
  std::vector<double>& sums = sums_[place.linear][place.factor];
  const int64_t chunks = ceil_div(numel_of(linear, place.factor, rank), kShardGranule);
  sums.resize(static_cast<size_t>(chunks * rank));
  SHARDTUNE_ASSERT(piece.begin % kShardGranule == 0);
  const int64_t length = std::ssize(piece.parameter);
  parallel_for(ceil_div(length, kShardGranule), 4, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      double* out = sums.data() + (piece.begin / kShardGranule + c) * rank;
      std::fill_n(out, rank, 0.0);
      for (int64_t i = c * kShardGranule; i < std::min(length, (c + 1) * kShardGranule); ++i) {
        const int64_t element = piece.begin + i;
        const int64_t triplet = place.factor == kA   ? element / linear.in_features
                                : place.factor == kB ? element % rank
                                                     : element;
        const float score = piece.states[kImportance][static_cast<size_t>(i)] *
                            piece.states[kUncertainty][static_cast<size_t>(i)];
        out[triplet] += static_cast<double>(score);
      }
    }
  });
}

// S(E) + mean over a row of A + mean over a column of B, for all triplets in order.
std::vector<double> RankAllocator::scores() const {
  const auto rank = static_cast<size_t>(schedule_.init_r);
  std::vector<double> scores;
  for (size_t l = 0; l < linears_.size(); ++l) {
    std::array<std::vector<double>, 3> totals;
    for (const Factor factor : {kA, kE, kB}) {
      totals[factor].resize(rank);
      const std::vector<double>& sums = sums_[l][factor];
      for (size_t i = 0; i < sums.size(); ++i)
        totals[factor][i % rank] += sums[i];
    }
    for (size_t j = 0; j < rank; ++j) {
      scores.push_back(totals[kE][j] +
                       totals[kA][j] / static_cast<double>(linears_[l].in_features) +
                       totals[kB][j] / static_cast<double>(linears_[l].out_features));
    }
  }
  return scores;
}

void RankAllocator::allocate(int64_t step, const models::GatherChunks& gather) {
  const int64_t rank = schedule_.init_r;
  std::vector<models::ChunkValues> values;
  sums_.resize(linears_.size());
  for (size_t l = 0; l < linears_.size(); ++l) {
    for (const Factor factor : {kA, kE, kB}) {
      std::vector<double>& sums = sums_[l][factor];  // a rank may hold no part of it
      const int64_t numel = numel_of(linears_[l], factor, rank);
      sums.resize(static_cast<size_t>(ceil_div(numel, kShardGranule) * rank));
      values.push_back({linears_[l].ids[factor], rank, sums});
    }
  }
  gather(values);
  const std::vector<double> all = scores();
  const int64_t removed =
      std::ssize(all) - schedule_.budget(step, static_cast<int64_t>(linears_.size()));
  kept_.assign(linears_.size(), std::vector<uint8_t>(static_cast<size_t>(rank), 1));
  if (removed <= 0)
    return;
  std::vector<double> sorted = all;
  const auto last_removed = sorted.begin() + (removed - 1);
  std::ranges::nth_element(sorted, last_removed);
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] <= *last_removed)
      kept_[i / static_cast<size_t>(rank)][i % static_cast<size_t>(rank)] = 0;
  }
}

void RankAllocator::after_optimizer_step(int64_t step, std::span<const UpdatedRange> ranges,
                                         const models::GatherChunks& gather) {
  const bool allocates = schedule_.allocates(step);
  if (allocates)
    allocate(step, gather);
  if (kept_.empty() || !(allocates || step > schedule_.last_allocation()))
    return;
  for (const UpdatedRange& range : ranges) {
    const auto found = places_.find(range.id);
    if (found == places_.end() || found->second.factor != kE)
      continue;
    const std::vector<uint8_t>& kept = kept_[found->second.linear];
    for (size_t i = 0; i < range.parameter.size(); ++i) {
      if (kept[static_cast<size_t>(range.begin) + i] == 0)
        range.parameter[i] = 0.0f;
    }
  }
}

std::string RankAllocator::state() const {
  std::string bytes;
  for (const std::vector<uint8_t>& kept : kept_) {
    for (const uint8_t mark : kept)
      bytes += static_cast<char>('0' + mark);
  }
  return bytes;
}

void RankAllocator::load_state(const std::string& bytes) {
  const auto rank = static_cast<size_t>(schedule_.init_r);
  const size_t expected = linears_.size() * rank;
  if (!bytes.empty() &&
      (bytes.size() != expected || bytes.find_first_not_of("01") != std::string::npos))
    throw DataError(
        "checkpoint: rank_pattern: expected " + std::to_string(expected) +
        " marks 0 or 1 (init_r for each of " + std::to_string(linears_.size()) +
        " linears), found " + std::to_string(bytes.size()) +
        " bytes of something else. Use the configuration the checkpoint was made with.");
  kept_.clear();
  for (size_t i = 0; i < bytes.size(); i += rank) {
    std::vector<uint8_t>& kept = kept_.emplace_back();
    for (const char mark : bytes.substr(i, rank))
      kept.push_back(mark == '1' ? 1 : 0);
  }
}

}  // namespace shardtune::adapters
