// What may be drawn against transformers' warpers, and what is drawn.
#include "inference/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "tests/support/small_model.h"

namespace shardtune::inference {
namespace {

TEST(Sampling, CandidatesAreThoseOfTransformersWarpers) {
  const auto file = io::open_safetensors(testing::golden("sampling/expected.safetensors"));
  int num_cases = 0;
  for (; file->find("logits_" + std::to_string(num_cases)) != nullptr; ++num_cases) {
    const std::string number = std::to_string(num_cases);
    const auto logits = testing::read_tensor(*file, "logits_" + number);
    const auto given = testing::read_tensor(*file, "options_" + number);
    const auto expected = testing::read_tensor(*file, "probabilities_" + number);
    SamplingOptions options;
    options.temperature = given[0];
    options.top_k = static_cast<int64_t>(given[1]);
    options.top_p = given[2];
    std::vector<double> found(logits.size(), 0.0);
    for (const Candidate& candidate : candidates(logits, options))
      found[static_cast<size_t>(candidate.id)] = candidate.probability;
    // Both in fp64; the golden ones were rounded to f32. An exponent of size e has an error of e
    // roundings, sums of n terms one of n: below 2^-40 together.
    for (size_t id = 0; id < found.size(); ++id)
      ASSERT_NEAR(found[id], expected[id], expected[id] * (0x1p-24 + 0x1p-40) + 1e-30)
          << "case " << number << " token " << id;
  }
  EXPECT_EQ(num_cases, 41);
}

TEST(Sampling, DrawsInProportionToProbability) {
  const std::vector<float> logits = {0.0f, 1.0f, -1.0f, 2.0f, -INFINITY};
  SamplingOptions options;
  options.temperature = 1.0;
  const auto all = candidates(logits, options);
  std::vector<int> counts(logits.size());
  constexpr int kDraws = 40'000;
  for (int i = 0; i < kDraws; ++i)
    ++counts[static_cast<size_t>(draw(all, draw_point(7, 3, i)))];
  EXPECT_EQ(counts[4], 0);
  for (const Candidate& candidate : all) {
    const double expected = candidate.probability * kDraws;
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(counts[static_cast<size_t>(candidate.id)], expected,
                5.0 * std::sqrt(expected * (1.0 - candidate.probability)));
  }
}

TEST(Sampling, PointsAreFixedByTheirKeysAlone) {
  EXPECT_EQ(draw_point(1, 2, 3), draw_point(1, 2, 3));
  EXPECT_NE(draw_point(1, 2, 3), draw_point(2, 2, 3));
  EXPECT_NE(draw_point(1, 2, 3), draw_point(1, 3, 3));
  EXPECT_NE(draw_point(1, 2, 3), draw_point(1, 2, 4));
  EXPECT_NE(draw_point(1, 2, 3), draw_point(1, 2, 3 + (int64_t{1} << 32)));
  const std::vector<int32_t> ids = {5, 6}, others = {6, 5};
  EXPECT_EQ(prompt_key(ids, 0), prompt_key(ids, 0));
  EXPECT_NE(prompt_key(ids, 0), prompt_key(ids, 1));
  EXPECT_NE(prompt_key(ids, 0), prompt_key(others, 0));
  for (int i = 0; i < 1000; ++i) {
    const double point = draw_point(9, 9, i);
    EXPECT_TRUE(point >= 0.0 && point < 1.0);
  }
}

TEST(Sampling, TheEndsOfTheLineAreTheFirstAndTheLastCandidate) {
  const std::vector<Candidate> all = {{4, 0.25}, {9, 0.5}, {1, 0.25}};
  EXPECT_EQ(draw(all, 0.0), 4);
  EXPECT_EQ(draw(all, 0.25), 9);
  EXPECT_EQ(draw(all, 0x1.fffffffffffffp-1), 1);
  const std::vector<Candidate> short_of_one = {{4, 0.25}, {9, 0.5}};  // as roundings might leave it
  EXPECT_EQ(draw(short_of_one, 0.9), 9);
}

TEST(Sampling, RefusesLogitsThatAreNoNumbersAndOptionsOutOfRange) {
  SamplingOptions options;
  options.temperature = 1.0;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY}) {
    const std::vector<float> logits = {0.0f, bad, 1.0f};
    EXPECT_THROW(candidates(logits, options), NonFiniteError);
  }
  for (const SamplingOptions& wrong :
       {SamplingOptions{-1.0, 0, 1.0, 0}, SamplingOptions{NAN, 0, 1.0, 0},
        SamplingOptions{INFINITY, 0, 1.0, 0}, SamplingOptions{1.0, -1, 1.0, 0},
        SamplingOptions{1.0, 0, 0.0, 0}, SamplingOptions{1.0, 0, 1.5, 0}})
    EXPECT_THROW(check(wrong), ArgumentError);
  check(options);
}

}  // namespace
}  // namespace shardtune::inference
