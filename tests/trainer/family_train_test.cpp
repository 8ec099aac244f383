// Whole trainings of the families beside llama: the same bits on any ranks, stage, offload and
// recompute, packed and not, in both compute dtypes, and after a resume.
#include <gtest/gtest.h>

#include "adapters/adapter.h"
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

TinyShape gpt2_shape() {
  TinyShape shape;
  shape.model_type = "gpt2";
  return shape;
}

bool has_virtual_tokens(const std::string& method) {
  return method.find("prefix") != std::string::npos || method.find("prompt") != std::string::npos ||
         method == "p_tuning";
}
bool trains_the_base(const std::string& method) {
  return method == "bitfit" || method == "freeze" || method == "full";
}
std::string more_keys(const std::string& method) {
  if (method == "freeze")
    return ", freeze_trainable_layers: 1";
  if (method == "bottleneck")
    return ", reduction_factor: 4";
  return trains_the_base(method) ? "" : ", target_modules: [c_attn, c_fc, c_proj]";
}
std::string base_of(const std::string& method) { return trains_the_base(method) ? "none" : "nf4"; }

TEST(Gpt2Training, EveryAdapterMethodHasTheSameBitsOnTwoRanks) {
  const SmallRun small(gpt2_shape());
  for (const std::string& method : adapters::adapter_methods().names()) {
    if (has_virtual_tokens(method))
      continue;  // tests/golden/adapters has them on gpt2
    const std::vector<std::string> common = {"adapter={method: " + method + more_keys(method) + "}",
                                             "quantization={method: " + base_of(method) + "}",
                                             "training.max_steps=2", "training.micro_batch_size=1",
                                             "training.global_batch_size=2"};
    small.run(small.config(method, common));
    auto sharded = common;
    sharded.push_back("parallel.zero_optimization={stage: 3}");
    sharded.push_back("training.gradient_checkpointing=true");
    small.run(small.config(method + "3", sharded), 2);
    ASSERT_EQ(small.losses(method).size(), 2u) << method;
    EXPECT_EQ(small.losses(method + "3"), small.losses(method)) << method;
    EXPECT_TRUE(small.adapter_bytes(method + "3") == small.adapter_bytes(method)) << method;
  }
}

// A folder's [in,out] weights are turned element by element.
TEST(Gpt2Training, KeepHasTheBitsOfTheSameValuesHeldDensely) {
  const SmallRun small(gpt2_shape());
  for (const std::string method : {"none", "keep"})
    small.run(small.config(method, {"training.max_steps=2", "model.compute_dtype=bfloat16",
                                    "quantization={method: " + method + "}"}));
  EXPECT_EQ(small.losses("keep"), small.losses("none"));
  EXPECT_TRUE(small.adapter_bytes("keep") == small.adapter_bytes("none"));
}

TEST(Gpt2Training, Int8HasTheSameBitsOnTwoRanks) {
  const SmallRun small(gpt2_shape());
  const std::vector<std::string> common = {"training.max_steps=2", "model.compute_dtype=int8"};
  small.run(small.config("one", common));
  small.run(small.config("two", common), 2);
  EXPECT_EQ(small.losses("two"), small.losses("one"));
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTraining, ::testing::Values("mistral", "qwen2", "gpt2"));

}  // namespace
}  // namespace shardtune::trainer
