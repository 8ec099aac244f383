// Whole trainings of the families beside llama: the same bits on any ranks, stage, offload and
// recompute, packed and not, in both compute dtypes, and after a resume.
#include <gtest/gtest.h>

#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;
using testing::TinyShape;

class FamilyTraining : public ::testing::TestWithParam<const char*> {};

TEST_P(FamilyTraining, GivesTheSameBitsEverywhere) {
  TinyShape shape;
  shape.model_type = GetParam();
  const SmallRun small(shape);
  const std::string nvme = ", nvme_path: \"" + small.path("model").string() + "\"}";
  struct Choice {
    const char* name;
    int ranks;
    std::string zero;
    const char* recompute;
  };
  const Choice choices[] = {
      {"stage0", 2, "{stage: 0}", "true"},
      {"stage3", 2, "{stage: 3}", "true"},
      {"nvme", 2,
       "{stage: 2, offload_param: {device: nvme" + nvme + ", offload_optimizer: {device: nvme" +
           nvme + "}",
       "false"},
  };
  for (const char* dtype : {"float32", "bfloat16"}) {
    const std::vector<std::string> common = {
        "training.max_steps=3",        std::string("model.compute_dtype=") + dtype,
        "data.packing=true",           "eval.eval_steps=3",
        "training.micro_batch_size=1", "training.global_batch_size=3"};
    const std::string reference = std::string("reference-") + dtype;
    small.run(small.config(reference, common));
    for (const Choice& choice : choices) {
      const std::string output = std::string(choice.name) + dtype;
      auto overrides = common;
      overrides.push_back("parallel.zero_optimization=" + choice.zero);
      overrides.push_back(std::string("training.gradient_checkpointing=") + choice.recompute);
      small.run(small.config(output, overrides), choice.ranks);
      EXPECT_EQ(small.losses(output), small.losses(reference)) << output;
      EXPECT_EQ(small.adapter_bytes(output), small.adapter_bytes(reference)) << output;
    }
  }
}

TEST_P(FamilyTraining, GoesOnAfterAStop) {
  TinyShape shape;
  shape.model_type = GetParam();
  const SmallRun small(shape);
  small.run(small.config("whole"));
  small.run(small.config("cut", {"training.stop_at_step=2"}));
  small.run(small.config("cut"));
  EXPECT_EQ(small.losses("cut"), small.losses("whole"));
  EXPECT_EQ(small.adapter_bytes("cut"), small.adapter_bytes("whole"));
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTraining, ::testing::Values("mistral", "qwen2"));

}  // namespace
}  // namespace shardtune::trainer
