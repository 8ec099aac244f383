#include <gtest/gtest.h>

#include <algorithm>
#include <array>

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

TEST(OptimizerRegistry, BuildsSgdFromItsSection) {
  io::ConfigErrors errors;
  const auto build = [&](const std::string& text) {
    const auto root = io::YamlNode::parse(text, "run.yaml", errors);
    const auto node = root.section("optimizer");
    const auto names = make_optimizer(node)->state_names();
    node.finish();
    return names;
  };
  EXPECT_TRUE(build("optimizer: {name: sgd}").empty());
  EXPECT_EQ(build("optimizer: {name: sgd, momentum: 0.9, nesterov: true}"),
            std::vector<std::string>{"momentum_buffer"});
  EXPECT_TRUE(errors.messages().empty());
  build("optimizer:\n  name: sgd\n  nesterov: true\n");
  build("optimizer:\n  name: sgd\n  momentum: 0.9\n  dampening: 0.1\n  nesterov: true\n");
  build("optimizer:\n  name: sgd\n  betas: [0.9, 0.9]\n");
  build("optimizer:\n  name: sgd\n  momentum: 1\n");
  const std::vector<std::array<const char*, 2>> expected{
      {"run.yaml:3", "without a momentum above 0"},
      {"run.yaml:4", "beside 'nesterov: true', found 0.1"},
      {"run.yaml:3", "unknown key 'betas'"},
      {"run.yaml:3", "expected a number >= 0 and < 1, found 1"}};
  ASSERT_EQ(errors.messages().size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    for (const char* text : expected[i])
      EXPECT_NE(errors.messages()[i].find(text), std::string::npos) << errors.messages()[i];
  }
}

}  // namespace
}  // namespace shardtune::optim
