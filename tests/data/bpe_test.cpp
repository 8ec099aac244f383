// Long pieces are merged block by block: the same tokens as by the definition, pair after pair.
#include "data/bpe.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <set>
#include <utility>

#include "core/rng.h"

namespace shardtune::data {
namespace {

/// The lowest rank of all adjacent pairs, leftmost first, until none is left.
std::vector<int32_t> merge_plainly(const std::vector<BpeMerge>& merges, std::vector<int32_t> ids) {
  std::map<std::pair<int32_t, int32_t>, std::pair<uint32_t, int32_t>> table;
  for (const BpeMerge& merge : merges)
    table[{merge.left, merge.right}] = {merge.rank, merge.merged};
  std::vector<int64_t> next(ids.size()), previous(ids.size());
  std::set<std::pair<uint32_t, int64_t>> queue;
  const auto end = std::ssize(ids);
  const auto rank_at = [&](int64_t at) {
    const auto found = next[at] < end ? table.find({ids[at], ids[next[at]]}) : table.end();
    return found == table.end() ? std::numeric_limits<uint32_t>::max() : found->second.first;
  };
  const auto note = [&](int64_t at) {
    if (rank_at(at) != std::numeric_limits<uint32_t>::max())
      queue.insert({rank_at(at), at});
  };
  for (int64_t at = 0; at < end; ++at) {
    next[at] = at + 1;
    previous[at] = at - 1;
  }
  for (int64_t at = 0; at < end; ++at)
    note(at);
  while (!queue.empty()) {
    const int64_t at = queue.begin()->second;
    const int64_t right = next[at];
    queue.erase(queue.begin());
    queue.erase({rank_at(right), right});
    if (previous[at] >= 0)
      queue.erase({rank_at(previous[at]), previous[at]});
    ids[at] = table.at({ids[at], ids[right]}).second;
    next[at] = next[right];
    if (next[at] < end)
      previous[next[at]] = at;
    note(at);
    if (previous[at] >= 0)
      note(previous[at]);
  }
  std::vector<int32_t> merged;
  for (int64_t at = 0; at < end; at = next[at])
    merged.push_back(ids[at]);
  return merged;
}

class VectorReader : public SymbolReader {
 public:
  explicit VectorReader(const std::vector<int32_t>& symbols) : symbols_(symbols) {}
  void restart() override { next_ = 0; }
  bool read(std::size_t count, std::vector<int32_t>& symbols) override {
    const std::size_t end = std::min(symbols_.size(), next_ + count);
    symbols.insert(symbols.end(), symbols_.begin() + static_cast<long>(next_),
                   symbols_.begin() + static_cast<long>(end));
    return std::exchange(next_, end) < end;
  }

 private:
  const std::vector<int32_t>& symbols_;
  std::size_t next_ = 0;
};

/// Behind a token that is there already.
std::vector<int32_t> merge_long(const BpeMerger& merger, const std::vector<int32_t>& symbols) {
  VectorReader reader(symbols);
  std::vector<int32_t> scratch{5}, ids{-7};
  merger.merge_long(reader, scratch, ids);
  EXPECT_EQ(ids.front(), -7);
  ids.erase(ids.begin());
  return ids;
}

/// Random merges over `letters` symbols. Shuffled ranks do not ascend with the tokens they use.
std::vector<BpeMerge> random_merges(const CounterRng& rng, int letters, int count, bool shuffled) {
  std::vector<BpeMerge> merges;
  std::set<std::pair<int32_t, int32_t>> seen;
  for (uint64_t i = 0; std::ssize(merges) < count; ++i) {
    const auto known = static_cast<uint64_t>(letters) + merges.size();
    const auto left = static_cast<int32_t>(rng.bits(3 * i) % known);
    const auto right = static_cast<int32_t>(rng.bits(3 * i + 1) % known);
    if (!seen.insert({left, right}).second)
      continue;
    const auto rank = static_cast<uint32_t>(shuffled ? rng.bits(3 * i + 2) % 16 : merges.size());
    merges.push_back({left, right, static_cast<int32_t>(known), rank});
  }
  return merges;
}

TEST(BpeMerger, LongPiecesAreMergedAsByTheDefinition) {
  for (uint64_t round = 0; round < 24; ++round) {
    const CounterRng rng(round);
    const int letters = 1 + static_cast<int>(round % 3);
    const auto merges =
        random_merges(rng, letters, 8 + 4 * static_cast<int>(round), round % 2 == 1);
    const BpeMerger merger(merges);
    std::vector<int32_t> ids(17'000 + 5'000 * (round % 4));
    const uint64_t period = round % 5 == 0 ? 7 : 1'000'000;  // repeated units or none
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] =
          static_cast<int32_t>(rng.bits(1'000'000 + i % period) % static_cast<uint64_t>(letters));
    const std::vector<int32_t> expected = merge_plainly(merges, ids);
    const std::vector<int32_t> found = merge_long(merger, ids);
    EXPECT_TRUE(found == expected)
        << "round " << round << ": " << found.size() << " tokens, expected " << expected.size();
    merger.merge(ids);
    EXPECT_TRUE(ids == expected) << "at once, round " << round;
  }
}

/// Letters 0 to `reach`, then all of them as one token from the end on: the last letter of a run
/// decides about every token before it. Runs are cut off at the end of the text.
void expect_runs_merge(int32_t reach, size_t count) {
  std::vector<BpeMerge> merges{{reach - 1, reach, reach + 1, 0}};
  for (int32_t i = reach - 2; i >= 0; --i)
    merges.push_back(
        {i, merges.back().merged, merges.back().merged + 1, static_cast<uint32_t>(merges.size())});
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i)
    ids[i] = static_cast<int32_t>(i % static_cast<size_t>(reach + 1));
  const std::vector<int32_t> expected = merge_plainly(merges, ids);
  EXPECT_TRUE(merge_long(BpeMerger(merges), ids) == expected) << "reach " << reach;
}

TEST(BpeMerger, GivesUpAsManyTokensAsTheNextBlockChanges) { expect_runs_merge(400, 60'000); }
TEST(BpeMerger, MergesAllAtOnceWhereThatIsNotEnough) { expect_runs_merge(15'000, 60'000); }

}  // namespace
}  // namespace shardtune::data
