#include "optim/clip.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "tests/optim/golden_rows.h"

namespace shardtune::optim {
namespace {

TEST(Clip, ScalesAsTorch) {
  auto file = open_golden("clip.txt");
  double max_norm = 0.0;
  std::string word;
  int num_cases = 0;
  while (file >> max_norm >> word) {
    std::vector<float> gradient = read_floats(file);
    file >> word;
    const std::vector<float> clipped = read_floats(file);
    ASSERT_EQ(clipped.size(), 2u);
    const double norm = std::hypot(double(gradient[0]), double(gradient[1]));
    scale_gradient(gradient, clip_coefficient(norm, max_norm));
    // torch takes norm, sum with 1e-6, quotient and product in fp32: four roundings, we two.
    constexpr float kEps = std::numeric_limits<float>::epsilon();
    for (size_t i = 0; i < 2; ++i)
      EXPECT_NEAR(gradient[i], clipped[i], 3 * kEps * std::abs(clipped[i]));
    ++num_cases;
  }
  EXPECT_EQ(num_cases, 5);
}

TEST(Clip, LeavesSmallGradientsAlone) {
  EXPECT_EQ(clip_coefficient(0.5, 1.0), 1.0f);
  EXPECT_EQ(clip_coefficient(0.0, 1.0), 1.0f);
  EXPECT_EQ(clip_coefficient(1e30, 0.0), 1.0f);
}

TEST(Clip, RefusesNormsThatAreNotFinite) {
  EXPECT_THROW(clip_coefficient(std::nan(""), 1.0), ArgumentError);
  EXPECT_THROW(clip_coefficient(std::numeric_limits<double>::infinity(), 1.0), ArgumentError);
  EXPECT_THROW(clip_coefficient(1.0, -1.0), ArgumentError);
  EXPECT_THROW(clip_coefficient(1.0, std::nan("")), ArgumentError);
}

}  // namespace
}  // namespace shardtune::optim
