#include <gtest/gtest.h>

#include <algorithm>

#include "optim/optimizer.h"

namespace shardtune::optim {
namespace {

std::vector<std::string> errors_of(const std::string& section) {
  io::ConfigErrors errors;
  const auto root = io::YamlNode::parse(section, "run.yaml", errors);
  const auto node = root.section("optimizer");
  const auto optimizer = make_optimizer(node);
  EXPECT_EQ(optimizer->state_names(), (std::vector<std::string>{"exp_avg", "exp_avg_sq"}));
  node.finish();
  return errors.messages();
}

TEST(OptimizerRegistry, BuildsAdamWFromItsSection) {
  EXPECT_TRUE(errors_of("optimizer: {name: adamw, betas: [0.9, 0.95], eps: 1e-6}").empty());
  EXPECT_TRUE(errors_of("optimizer: {}").empty());
  EXPECT_TRUE(errors_of("training: {seed: 1}").empty());
}

TEST(OptimizerRegistry, TellsEveryProblemWithItsLine) {
  const auto errors =
      errors_of("optimizer:\n  name: adamv\n  betas: [0.9, 1.0]\n  eps: 0\n  momentum: 1\n");
  ASSERT_EQ(errors.size(), 4u);
  for (const char* text : {"run.yaml:2", "Did you mean 'adamw'", "run.yaml:3", "run.yaml:4",
                           "run.yaml:5", "momentum"}) {
    EXPECT_TRUE(std::any_of(errors.begin(), errors.end(), [&](const std::string& error) {
      return error.find(text) != std::string::npos;
    })) << text;
  }
  EXPECT_EQ(errors_of("optimizer: {betas: [0.9]}").size(), 1u);
}

}  // namespace
}  // namespace shardtune::optim
