// SGD through whole trainings: the same bits on any ranks, stage and offload, and after a resume.
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;

const char* const kNesterov =
    "optimizer={name: sgd, momentum: 0.9, nesterov: true, weight_decay: 0.01}";
const char* const kPlain = "optimizer={name: sgd}";

std::string zero_stage(const std::string& settings) {
  return "parallel.zero_optimization={stage: " + settings + "}";
}

void expect_the_same(const SmallRun& small, const std::string& output, const std::string& other) {
  EXPECT_EQ(small.losses(output), small.losses(other)) << output;
  EXPECT_TRUE(small.adapter_bytes(output) == small.adapter_bytes(other)) << output;
}

TEST(SgdTraining, WithMomentumGivesTheSameBitsEverywhere) {
  const SmallRun small;
  const std::string offloaded = zero_stage("2, offload_optimizer: {device: nvme, nvme_path: \"" +
                                           small.path("model").string() + "\"}");
  small.run(small.config("whole", {kNesterov}));
  EXPECT_NE(small.losses("whole").front(), small.losses("whole").back());
  const auto cell = [&](const std::string& output, const std::string& zero) {
    small.run(small.config(output, {kNesterov, zero}), 2);
    expect_the_same(small, output, "whole");
  };
  cell("stage1", zero_stage("1"));
  cell("stage3", zero_stage("3"));
  cell("offloaded", offloaded);
  small.run(small.config("cut", {kNesterov, zero_stage("3"), "training.stop_at_step=2"}), 2);
  const TrainResult rest = small.run(small.config("cut", {kNesterov, offloaded}), 2);
  EXPECT_EQ(rest.resumed_from, 2);
  expect_the_same(small, "cut", "whole");
  small.run(small.config("plain", {kPlain}));
  EXPECT_FALSE(small.adapter_bytes("plain") == small.adapter_bytes("whole"));
}

TEST(SgdTraining, WithoutStatesGivesTheSameBitsEverywhere) {
  const SmallRun small;
  small.run(small.config("whole", {kPlain}));
  EXPECT_NE(small.losses("whole").front(), small.losses("whole").back());
  small.run(small.config("cut", {kPlain, zero_stage("3"), "training.stop_at_step=2"}), 2);
  const TrainResult rest = small.run(small.config("cut", {kPlain, zero_stage("1")}), 2);
  EXPECT_EQ(rest.resumed_from, 2);
  expect_the_same(small, "cut", "whole");
}

TEST(SgdTraining, ConfigurationIsStrict) {
  const SmallRun small;
  const auto error_of = [&](const std::vector<std::string>& overrides) -> std::string {
    try {
      small.config("x", overrides);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(error_of({"optimizer={name: sgd, betas: [0.9, 0.9]}"}).find("betas"),
            std::string::npos);
  EXPECT_NE(error_of({"optimizer={name: sgd}",
                      "parallel.zero_optimization={stage: 1, offload_optimizer: {device: nvme, "
                      "nvme_path: /tmp}}"})
                .find("sgd without momentum"),
            std::string::npos);
  EXPECT_NE(resolved_text(small.config("x", {kNesterov})).find("nesterov: true"),
            std::string::npos);
}

}  // namespace
}  // namespace shardtune::trainer
