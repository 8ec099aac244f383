#include "optim/sgd.h"

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

std::vector<float> named_row(std::istream& file, const std::string& name) {
  std::string word;
  file >> word;
  EXPECT_EQ(word, name);
  return read_floats(file);
}

// torch's add with alpha may fuse a product and a sum, we never do: of the decayed gradient, the
// buffer and the parameter each differs by the rounding of its product and of its sum.
TEST(Sgd, FollowsTheStepsOfTorch) {
  auto file = open_golden("sgd.txt");
  std::string word;
  int num_cases = 0;
  while (file >> word) {
    ASSERT_EQ(word, "case");
    double lr = 0.0, decay = 0.0;
    SgdOptions options;
    int nesterov = 0, num_steps = 0;
    file >> lr >> decay >> options.momentum >> options.dampening >> nesterov >> num_steps;
    options.nesterov = nesterov == 1;
    const Sgd sgd(options);
    std::vector<float> parameter = named_row(file, "parameter");
    std::vector<float> buffer(parameter.size());
    ASSERT_EQ(parameter.size(), 37u);
    for (int step = 1; step <= num_steps; ++step) {
      const auto gradient = named_row(file, "gradient");
      const auto expected = named_row(file, "parameter");
      const auto expected_buffer = named_row(file, "momentum_buffer");
      const auto before = parameter;
      OptimizerSegment segment{parameter, gradient, {}, lr, decay};
      if (options.momentum > 0.0)
        segment.states.emplace_back(buffer);
      sgd.step({&segment, 1}, step);
      for (size_t i = 0; i < parameter.size(); ++i) {
        const double size = std::abs(gradient[i]) + decay * std::abs(before[i]) +
                            std::abs(expected_buffer[i]) + std::abs(buffer[i]);
        EXPECT_NEAR(buffer[i], expected_buffer[i], 3 * kEps * size) << i;
        EXPECT_NEAR(parameter[i], expected[i], kEps * std::abs(expected[i]) + lr * 6 * kEps * size)
            << i;
      }
      parameter = expected;
      buffer = expected_buffer;
    }
    ++num_cases;
  }
  EXPECT_EQ(num_cases, 4);
}

TEST(Sgd, BitsDependNeitherOnShardsNorOnThreads) {
  const size_t count = 100001;
  const CounterRng rng(5);
  std::vector<float> gradient(count), whole(count), buffer(count);
  for (size_t i = 0; i < count; ++i) {
    gradient[i] = rng.normal(2 * i);
    whole[i] = rng.normal(2 * i + 1);
  }
  auto sharded = whole;
  auto sharded_buffer = buffer;
  const Sgd sgd({.momentum = 0.9, .dampening = 0.0, .nesterov = true});
  const auto segment = [&](std::vector<float>& p, std::vector<float>& b, size_t begin, size_t end) {
    const auto part = [=](auto& values) { return std::span(values).subspan(begin, end - begin); };
    return OptimizerSegment{part(p), part(gradient), {part(b)}, 1e-2, 0.1};
  };
  const int threads_before = num_threads();
  for (int step = 1; step <= 3; ++step) {
    set_num_threads(1);
    const std::vector<OptimizerSegment> one{segment(whole, buffer, 0, count)};
    sgd.step(one, step);
    set_num_threads(4);
    const std::vector<OptimizerSegment> parts{segment(sharded, sharded_buffer, 0, 4096),
                                              segment(sharded, sharded_buffer, 4096, count)};
    sgd.step(parts, step);
  }
  set_num_threads(threads_before);
  EXPECT_EQ(std::memcmp(whole.data(), sharded.data(), count * 4), 0);
  EXPECT_EQ(std::memcmp(buffer.data(), sharded_buffer.data(), count * 4), 0);
}

TEST(Sgd, RefusesWhatDoesNotFit) {
  EXPECT_THROW(Sgd({.momentum = 1.0}), ArgumentError);
  EXPECT_THROW(Sgd({.momentum = 0.9, .dampening = 0.1, .nesterov = true}), ArgumentError);
  EXPECT_THROW(Sgd({.nesterov = true}), ArgumentError);
  std::vector<float> values(4);
  OptimizerSegment segment{values, values, {}, 1e-2, 0.0};
  EXPECT_THROW(Sgd({.momentum = 0.9}).step({&segment, 1}, 1), ArgumentError);
  EXPECT_THROW(Sgd({}).step({&segment, 1}, 0), ArgumentError);
}

}  // namespace
}  // namespace shardtune::optim
