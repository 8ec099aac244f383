#include "optim/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/parallel_for.h"
#include "core/rng.h"
#include "tests/optim/golden_rows.h"

namespace shardtune::optim {
namespace {

constexpr float kEps = std::numeric_limits<float>::epsilon();

struct State {
  std::vector<float> parameter, gradient, exp_avg, exp_avg_sq;

  explicit State(size_t count = 0, uint64_t seed = 0)
      : parameter(count), gradient(count), exp_avg(count), exp_avg_sq(count) {
    const CounterRng rng(seed);
    for (size_t i = 0; i < count; ++i) {
      parameter[i] = rng.normal(4 * i);
      gradient[i] = rng.normal(4 * i + 1);
      exp_avg[i] = rng.normal(4 * i + 2) * 0.1f;
      exp_avg_sq[i] = rng.uniform(4 * i + 3);
    }
  }
  OptimizerSegment segment(size_t begin, size_t end, double learning_rate, double decay) {
    const auto part = [=](std::vector<float>& v) {
      return std::span<float>(v).subspan(begin, end - begin);
    };
    return {
        part(parameter), part(gradient), {part(exp_avg), part(exp_avg_sq)}, learning_rate, decay};
  }
  OptimizerSegment whole(double learning_rate, double decay) {
    return segment(0, parameter.size(), learning_rate, decay);
  }
  bool same_bits(const State& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
    };
    return same(parameter, other.parameter) && same(exp_avg, other.exp_avg) &&
           same(exp_avg_sq, other.exp_avg_sq);
  }
};

struct GoldenStep {
  std::vector<float> gradient, parameter, exp_avg, exp_avg_sq;
};

std::vector<float> named_row(std::istream& file, const std::string& name) {
  std::string word;
  file >> word;
  EXPECT_EQ(word, name);
  return read_floats(file);
}

// torch's vectorised lerp and addcmul may fuse a product and a sum, we never do. One step from
// torch's own state differs by the rounding of that product: half an ulp of it, and half an ulp of
// the sum. The quotient of the update adds four roundings of its own.
void expect_step(const State& before, const State& after, const GoldenStep& golden,
                 const std::vector<double>& options) {
  const double lr = options[0], beta1 = options[2];
  for (size_t i = 0; i < after.parameter.size(); ++i) {
    const double move = (1.0 - beta1) * std::abs(double(golden.gradient[i]) - before.exp_avg[i]);
    const double avg_tolerance = kEps * (std::abs(before.exp_avg[i]) + move) + 1e-45;
    EXPECT_NEAR(after.exp_avg[i], golden.exp_avg[i], avg_tolerance) << i;
    const double sq_tolerance = 2 * kEps * golden.exp_avg_sq[i] + 1e-45;
    EXPECT_NEAR(after.exp_avg_sq[i], golden.exp_avg_sq[i], sq_tolerance) << i;
    // |update| <= |change of parameter| + decay; the error of exp_avg carries over relatively.
    const double root = std::sqrt(double(golden.exp_avg_sq[i]));
    const double relative = 8 * kEps * std::abs(golden.exp_avg[i]) + avg_tolerance;
    const double scale = lr / (1.0 - beta1) / std::max(root, options[4]);
    EXPECT_NEAR(after.parameter[i], golden.parameter[i],
                kEps * std::abs(golden.parameter[i]) + scale * relative)
        << i;
  }
}

TEST(AdamW, FollowsTheStepsOfTorch) {
  auto file = open_golden("adamw.txt");
  std::string word;
  int num_cases = 0;
  while (file >> word) {
    ASSERT_EQ(word, "case");
    std::vector<double> options(5);  // lr, decay, beta1, beta2, eps
    int num_steps = 0;
    for (double& option : options)
      file >> option;
    file >> num_steps;
    State state;
    state.parameter = named_row(file, "parameter");
    ASSERT_EQ(state.parameter.size(), 37u);
    state.exp_avg.resize(37);
    state.exp_avg_sq.resize(37);
    const AdamW adamw({options[2], options[3], options[4]});
    for (int step = 1; step <= num_steps; ++step) {
      GoldenStep golden;
      golden.gradient = named_row(file, "gradient");
      golden.parameter = named_row(file, "parameter");
      golden.exp_avg = named_row(file, "exp_avg");
      golden.exp_avg_sq = named_row(file, "exp_avg_sq");
      ASSERT_EQ(golden.exp_avg_sq.size(), 37u);
      state.gradient = golden.gradient;
      const State before = state;
      const std::vector<OptimizerSegment> segments{state.whole(options[0], options[1])};
      adamw.step(segments, step);
      expect_step(before, state, golden, options);
      state.parameter = golden.parameter;
      state.exp_avg = golden.exp_avg;
      state.exp_avg_sq = golden.exp_avg_sq;
    }
    ++num_cases;
  }
  EXPECT_EQ(num_cases, 4);
}

TEST(AdamW, VectorFormHasTheBitsOfThePlainForm) {
  for (const AdamWOptions options : {AdamWOptions{}, AdamWOptions{0.4, 0.9, 1e-6}}) {
    for (const size_t count : {size_t{1}, size_t{3}, size_t{17}, size_t{4097}}) {
      State vector(count, count);
      State plain = vector;
      for (int step = 1; step <= 5; ++step) {
        const std::vector<OptimizerSegment> segments{vector.whole(1e-2, 0.1)};
        AdamW(options).step(segments, step);
        adamw_step_plain(options, plain.whole(1e-2, 0.1), step);
        ASSERT_TRUE(vector.same_bits(plain)) << count << " elements, step " << step;
      }
    }
  }
}

TEST(AdamW, BitsDependNeitherOnShardsNorOnThreads) {
  const int threads_before = num_threads();
  State whole(100001, 5);
  State sharded = whole;
  const std::vector<OptimizerSegment> one{whole.whole(3e-4, 0.01)};
  set_num_threads(1);
  AdamW({}).step(one, 3);
  const std::vector<OptimizerSegment> parts{
      sharded.segment(0, 4096, 3e-4, 0.01), sharded.segment(4096, 4096, 3e-4, 0.01),
      sharded.segment(4096, 4103, 3e-4, 0.01), sharded.segment(4103, 100001, 3e-4, 0.01)};
  set_num_threads(4);
  AdamW({}).step(parts, 3);
  set_num_threads(threads_before);
  EXPECT_TRUE(whole.same_bits(sharded));
}

TEST(AdamW, EachSegmentHasItsOwnRateAndDecay) {
  State state(2, 1);
  const State before = state;
  const std::vector<OptimizerSegment> segments{state.segment(0, 1, 0.0, 0.5),
                                               state.segment(1, 2, 1e-1, 0.0)};
  AdamW({}).step(segments, 1);
  EXPECT_EQ(state.parameter[0], before.parameter[0]);
  EXPECT_NE(state.parameter[1], before.parameter[1]);
}

TEST(AdamW, RefusesSpansThatDoNotFit) {
  State state(8, 1);
  OptimizerSegment segment = state.whole(1e-3, 0.0);
  EXPECT_THROW(AdamW({}).step({&segment, 1}, 0), ArgumentError);
  segment.gradient = segment.gradient.first(7);
  EXPECT_THROW(AdamW({}).step({&segment, 1}, 1), ArgumentError);
  segment = state.whole(1e-3, 0.0);
  segment.states.pop_back();
  EXPECT_THROW(AdamW({}).step({&segment, 1}, 1), ArgumentError);
}

TEST(AdamW, RefusesBadOptions) {
  EXPECT_THROW(AdamW({1.0, 0.9, 1e-8}), ArgumentError);
  EXPECT_THROW(AdamW({0.9, -0.1, 1e-8}), ArgumentError);
  EXPECT_THROW(AdamW({0.9, 0.9, 0.0}), ArgumentError);
  EXPECT_THROW(AdamW({std::nan(""), 0.9, 1e-8}), ArgumentError);
}

}  // namespace
}  // namespace shardtune::optim
