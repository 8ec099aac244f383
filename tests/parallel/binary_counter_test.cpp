#include "parallel/binary_counter.h"

#include <gtest/gtest.h>

#include <string>

#include "parallel/loss_sum.h"
#include "parallel/thread_communicator.h"

namespace shardtune::parallel {
namespace {

struct Join {
  std::string operator()(const std::string& earlier, const std::string& later) const {
    return "(" + earlier + later + ")";
  }
};

std::string tree_of(const std::string& terms) {
  BinaryCounter<std::string, Join> counter;
  for (const char term : terms)
    counter.push(term == '-' ? std::nullopt : std::optional(std::string(1, term)));
  EXPECT_EQ(counter.count(), terms.size());
  const auto sum = counter.fold();
  EXPECT_EQ(counter.count(), 0u);
  return sum.value_or("nothing");
}

TEST(BinaryCounter, AddsInTheShapeOfTheNumber) {
  EXPECT_EQ(tree_of("a"), "a");
  EXPECT_EQ(tree_of("ab"), "(ab)");
  EXPECT_EQ(tree_of("abc"), "((ab)c)");
  EXPECT_EQ(tree_of("abcd"), "((ab)(cd))");
  EXPECT_EQ(tree_of("abcdef"), "(((ab)(cd))(ef))");
  // Folded from the low end: g joins (ef) before the four.
  EXPECT_EQ(tree_of("abcdefg"), "(((ab)(cd))((ef)g))");
  EXPECT_EQ(tree_of("abcdefghi"), "((((ab)(cd))((ef)(gh)))i)");
}

TEST(BinaryCounter, AbsentTermsKeepTheirPlace) {
  EXPECT_EQ(tree_of("-b"), "b");
  EXPECT_EQ(tree_of("a-cd"), "(a(cd))");
  EXPECT_EQ(tree_of("a--d"), "(ad)");
  EXPECT_EQ(tree_of("--cde"), "((cd)e)");
  EXPECT_EQ(tree_of("a-------i"), "(ai)");
  EXPECT_EQ(tree_of("---"), "nothing");
  EXPECT_EQ(tree_of(""), "nothing");
}

TEST(LossSum, EveryRankHasTheBitsOfOneRank) {
  const auto total_on = [](int world_size, int64_t count) {
    std::vector<LossTotal> totals(static_cast<size_t>(world_size));
    run_on_threads(world_size, [&](Communicator& comm) {
      LossSum sum(comm);
      sum.begin(count);
      for (int64_t m = comm.rank(); m < count; m += comm.world_size())
        sum.add(m, {1.0 / (3.0 + double(m * m)), double(m)});
      totals[static_cast<size_t>(comm.rank())] = sum.finish();
    });
    for (const LossTotal& total : totals) {
      EXPECT_EQ(total.sum, totals[0].sum);
      EXPECT_EQ(total.count, totals[0].count);
    }
    return totals[0];
  };
  for (const int64_t count : {1, 2, 5, 9, 33}) {
    const LossTotal expected = total_on(1, count);
    EXPECT_EQ(expected.count, double(count * (count - 1) / 2));
    for (const int world_size : {2, 3, 4, 8})
      EXPECT_EQ(total_on(world_size, count).sum, expected.sum) << count << " on " << world_size;
  }
  EXPECT_EQ(total_on(2, 0).mean(), 0.0);
}

TEST(LossSum, RefusesPartsOfOthersMissingAndDouble) {
  const auto comm = make_single_communicator();
  LossSum sum(*comm);
  sum.begin(2);
  sum.add(0, {1.0, 1.0});
  EXPECT_THROW(sum.add(0, {1.0, 1.0}), ArgumentError);
  EXPECT_THROW(sum.add(2, {1.0, 1.0}), ArgumentError);
  EXPECT_THROW(sum.finish(), ArgumentError);
}

}  // namespace
}  // namespace shardtune::parallel
