// Merge-aware training with every format, form of the kept weights, stage and place of the base.
#include <gtest/gtest.h>

#include "tests/trainer/small_run.h"
#include "trainer/memory_plan.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;
using Overrides = std::vector<std::string>;

Overrides overrides(const std::string& quantization, const std::string& form,
                    const std::string& zero) {
  return {
      "quantization={" + quantization + "}",
      "adapter={lora_rank: 4, lora_alpha: 8, merge_aware: true, merge_aware_weights: " + form + "}",
      "parallel.zero_optimization={" + zero + "}",
      "training.max_steps=3",
      "training.micro_batch_size=1",
      "training.global_batch_size=3"};
}

TEST(MergeAwareRuns, HaveTheSameBitsWhereverTheBaseLies) {
  const SmallRun small;
  const std::string nvme = "{device: nvme, nvme_path: \"" + small.path("model").string() + "\"}";
  const std::string nested = "method: nf4, double_quant: true", int8 = "method: int8";
  const auto run = [&](const std::string& output, int ranks, const Overrides& all,
                       const std::string& as) {
    small.run(small.config(output, all), ranks);
    EXPECT_EQ(small.losses(output), small.losses(as)) << output;
    EXPECT_TRUE(small.adapter_bytes(output) == small.adapter_bytes(as)) << output;
  };
  run("nf4", 1, overrides(nested, "residual", "stage: 0"), "nf4");
  run("nf4nvme2", 2, overrides(nested, "residual", "stage: 2, offload_param: " + nvme), "nf4");
  run("nf4nvme3", 2, overrides(nested, "residual", "stage: 3, offload_param: " + nvme), "nf4");
  run("int8", 1, overrides(int8, "int8", "stage: 0"), "int8");
  run("int8stage3", 3, overrides(int8, "int8", "stage: 3"), "int8");
  Overrides shared = overrides(int8, "int8", "stage: 1");
  shared.push_back("parallel.share_base_per_host=true");
  run("int8shared", 2, shared, "int8");
  run("fp4", 2, overrides("method: fp4, double_quant: false", "bf16", "stage: 2"), "fp4");
  EXPECT_NE(small.losses("fp4").back(), small.losses("nf4").back());
  EXPECT_NE(small.losses("int8").back(), small.losses("nf4").back());
}

TEST(MergeAwareRuns, FormsAreNotTheSameTraining) {
  const SmallRun small;
  for (const std::string form : {"bf16", "int8", "residual"})
    small.run(small.config(form, overrides("method: nf4", form, "stage: 0")));
  EXPECT_NE(small.losses("bf16").back(), small.losses("int8").back());
  EXPECT_NE(small.losses("int8").back(), small.losses("residual").back());
}

TEST(MergeAwareRuns, WhatCannotBeIsRefusedBeforeLoading) {
  const SmallRun small;
  const auto refusal = [&](const Overrides& more) -> std::string {
    try {
      small.run(small.config("refused", more));
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(refusal(overrides("method: none", "bf16", "stage: 0")).find("quantization.method none"),
            std::string::npos);
  Overrides int8 = overrides("method: nf4", "bf16", "stage: 0");
  int8.push_back("model.compute_dtype=int8");
  EXPECT_NE(refusal(int8).find("compute_dtype: int8"), std::string::npos);
  small.run(small.config("first", overrides("method: nf4", "bf16", "stage: 0")));
  EXPECT_NE(
      refusal({"adapter={adapter_name_or_path: \"" + small.path("first/adapter").string() + "\"}"})
          .find("was trained merge-aware"),
      std::string::npos);
}

}  // namespace
}  // namespace shardtune::trainer
