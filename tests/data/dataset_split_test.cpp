#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "data/dataset.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::expect_error;

Dataset numbered_dataset(int64_t count) {
  Dataset dataset;
  for (int64_t i = 0; i < count; ++i) {
    Record record;
    record.line = i;
    dataset.records.push_back(record);
    Sample sample;
    sample.ids.assign(static_cast<std::size_t>(i % 7 + 2), 1);
    sample.trained.assign(sample.ids.size(), 1);
    sample.trained[0] = 0;
    sample.cut = i % 10 == 0 ? Cut::kAnswer : Cut::kNone;
    sample.id = static_cast<uint64_t>(i);
    sample.record = i;
    dataset.samples.push_back(sample);
  }
  dataset.stats = stats_of(dataset.samples);
  return dataset;
}

std::vector<uint64_t> ids_of_samples(const Dataset& dataset) {
  std::vector<uint64_t> ids;
  for (const Sample& sample : dataset.samples) {
    ids.push_back(sample.id);
    EXPECT_EQ(dataset.records[static_cast<std::size_t>(sample.record)].line,
              static_cast<int64_t>(sample.id));
  }
  EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
  return ids;
}

TEST(SplitOff, TakesAShareOrACountThatDependsOnTheSeedAlone) {
  Dataset train = numbered_dataset(1000);
  const DatasetStats before = train.stats;
  const Dataset evaluation = split_off(train, 0.05, 42);
  EXPECT_EQ(evaluation.stats.num_samples, 50);
  EXPECT_EQ(train.stats.num_samples, 950);
  EXPECT_EQ(train.stats.num_tokens + evaluation.stats.num_tokens, before.num_tokens);
  EXPECT_EQ(train.stats.num_truncated_answers + evaluation.stats.num_truncated_answers, 100);
  auto all = ids_of_samples(train);
  const auto taken = ids_of_samples(evaluation);
  all.insert(all.end(), taken.begin(), taken.end());
  std::sort(all.begin(), all.end());
  for (uint64_t i = 0; i < 1000; ++i)
    ASSERT_EQ(all[i], i);
  // Spread over the data, not its head or tail: of 50 ids the mean has a deviation of 41.
  double mean = 0.0;
  for (const uint64_t id : taken)
    mean += static_cast<double>(id) / 50.0;
  EXPECT_NEAR(mean, 500.0, 5 * 41.0);

  Dataset again = numbered_dataset(1000);
  EXPECT_EQ(ids_of_samples(split_off(again, 50.0, 42)), taken);
  Dataset other = numbered_dataset(1000);
  EXPECT_NE(ids_of_samples(split_off(other, 0.05, 43)), taken);
  // A larger set holds the smaller one: more evaluation never trains on what was held out.
  Dataset more = numbered_dataset(1000);
  const auto larger = ids_of_samples(split_off(more, 80.0, 42));
  EXPECT_TRUE(std::includes(larger.begin(), larger.end(), taken.begin(), taken.end()));
}

TEST(SplitOff, LeavesSomethingToTrainOn) {
  for (const double wanted : {10.0, 11.0, 1e15}) {
    Dataset dataset = numbered_dataset(10);
    expect_error<ConfigError>([&] { split_off(dataset, wanted, 1); }, {"data.eval_split", "(10)"});
  }
  Dataset dataset = numbered_dataset(10);
  EXPECT_EQ(split_off(dataset, 0.999, 1).samples.size(), 9u);
  Dataset few = numbered_dataset(10);
  EXPECT_EQ(split_off(few, 1e-9, 1).samples.size(), 1u);
  Dataset one = numbered_dataset(1);
  EXPECT_THROW(split_off(one, 0.5, 1), ConfigError);
}

TEST(SplitOff, SamplesOfOneDocumentStayWithTheirText) {
  Dataset dataset = numbered_dataset(40);
  for (Sample& sample : dataset.samples)
    sample.record = 3;
  const Dataset taken = split_off(dataset, 20.0, 7);
  for (const Sample& sample : taken.samples)
    EXPECT_EQ(taken.records.at(static_cast<std::size_t>(sample.record)).line, 3);
}

}  // namespace
}  // namespace shardtune::data
