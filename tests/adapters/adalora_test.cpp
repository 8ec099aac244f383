// AdaLoRA's parts: the orthogonality loss against central differences, the budget, and what is
// refused of options and of saved folders.
#include <gtest/gtest.h>

#include <cmath>

#include "adapters/adapter.h"
#include "adapters/orthogonality.h"
#include "adapters/rank_allocator.h"
#include "io/yaml_node.h"
#include "tests/autograd/ops_fixture.h"
#include "tests/support/small_model.h"

namespace shardtune::adapters {
namespace {

using autograd::Tape;
using autograd::Variable;
using testing::SmallModel;
using Orthogonality = testing::OpsFixture;

TEST_F(Orthogonality, GoesBackToRows) {
  check({{3, 7}}, [](Tape& tape, const auto& x) {
    return orthogonality_loss(tape, x[0], Along::kRows, 0.7f);
  });
}

TEST_F(Orthogonality, GoesBackToColumns) {
  check({{9, 2}}, [](Tape& tape, const auto& x) {
    return orthogonality_loss(tape, x[0], Along::kColumns, 1.3f);
  });
}

TEST_F(Orthogonality, IsTheNormOfWhatIsLeft) {
  Tape tape(store_, autograd::Recording::kOff);
  const float values[] = {3, 0, 4, 0, 2, 0};  // P P^T - I = [[24, 0], [0, 3]]
  const Variable p = Variable::constant(Tensor::from(values, {2, 3}));
  const Variable loss = orthogonality_loss(tape, p, Along::kRows, 0.5f);
  EXPECT_FLOAT_EQ(loss.value().data<const float>()[0], 0.5f * std::sqrt(24.0f * 24.0f + 9.0f));
}

TEST_F(Orthogonality, HasNoGradientWhereThereIsNothingLeft) {
  Tape tape(store_, autograd::Recording::kOn);
  const float values[] = {1, 0, 0, 0, 1, 0};
  const Variable p = Variable::leaf(Tensor::from(values, {2, 3}));
  const Variable loss = orthogonality_loss(tape, p, Along::kRows, 0.5f);
  EXPECT_EQ(loss.value().data<const float>()[0], 0.0f);
  tape.add_loss(loss);
  tape.backward(loss, Tensor::zeros(Shape{1}, DType::kFloat32));
  for (const float gradient : p.grad().span<const float>())
    EXPECT_EQ(gradient, 0.0f);
}

TEST(RankSchedule, FallsWithTheCubeBetweenItsEnds) {
  RankSchedule schedule;
  schedule.init_r = 4;
  schedule.target_r = 2;
  schedule.tinit = 2;
  schedule.tfinal = 3;
  schedule.deltaT = 2;
  schedule.total_step = 13;
  EXPECT_FALSE(schedule.allocates(2));
  EXPECT_FALSE(schedule.allocates(3));  // not a multiple of deltaT
  EXPECT_TRUE(schedule.allocates(4));
  EXPECT_TRUE(schedule.allocates(10));
  EXPECT_FALSE(schedule.allocates(12));
  EXPECT_TRUE(schedule.updates_importance(9));
  EXPECT_FALSE(schedule.updates_importance(10));
  EXPECT_EQ(schedule.budget(6, 10), 22);  // 20 * (1 - 4/8)^3 + 20 = 22.5
  EXPECT_EQ(schedule.budget(10, 10), 20);
}

std::string yaml_errors(const std::string& text) {
  io::ConfigErrors errors;
  adapter_options_from_yaml(io::YamlNode::parse("{method: adalora, " + text + "}", "run", errors));
  std::string all;
  for (const std::string& message : errors.messages())
    all += message + "\n";
  return all;
}

TEST(AdaLoraOptions, OnesThatDoNotFitAreRefused) {
  EXPECT_EQ(yaml_errors("init_r: 4, target_r: 4"), "");
  EXPECT_NE(yaml_errors("init_r: 4, target_r: 5").find("expected at most init_r (4), found 5"),
            std::string::npos);
  EXPECT_NE(yaml_errors("rank_pattern: {q_proj: 3}").find("is what training finds out"),
            std::string::npos);
  EXPECT_NE(yaml_errors("beta1: 1").find("beta1"), std::string::npos);
  EXPECT_NE(yaml_errors("deltaT: 0").find("deltaT"), std::string::npos);
  EXPECT_NE(yaml_errors("lora_rank: 4").find("lora_rank"), std::string::npos);
}

TEST(AdaLoraOptions, AScheduleWithoutAStepInWhichRanksFallIsRefused) {
  const auto refusal = [](const std::string& text, int64_t steps) -> std::string {
    io::ConfigErrors errors;
    const auto options = adapter_options_from_yaml(
        io::YamlNode::parse("{method: adalora, " + text + "}", "run", errors));
    try {
      options->check_total_steps(steps);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(refusal("tinit: 3, tfinal: 6", 10), "");
  EXPECT_NE(refusal("tinit: 4, tfinal: 6", 10).find("less than 10 (steps of this run)"),
            std::string::npos);
  EXPECT_NE(refusal("tinit: 4, tfinal: 4, total_step: 8", 10).find("less than 8 (total_step)"),
            std::string::npos);
  EXPECT_NE(refusal("total_step: 11", 10).find("at most the 10 steps"), std::string::npos);
}

TEST(AdaLora, IsSavedAsPeftSavesIt) {
  for (const std::string name : {"adalora", "adalora_pruned", "gpt2_adalora"}) {
    const std::string base = name.starts_with("gpt2") ? "families/gpt2" : "tied_gqa";
    const std::string folder = testing::golden("adapters/" + name);
    SmallModel small(base);
    const auto adapter = load_adapter(folder, *small.model);
    const io::Json theirs = io::read_json_file(folder + "/adapter_config.json");
    io::Json ours = adapter->peft_config(base);
    if (name == "gpt2_adalora")  // theirs says mlp.c_proj, ours names whole paths
      ours.set("target_modules", *theirs.find("target_modules"));
    EXPECT_EQ(ours.dump(), theirs.dump());
    const auto file = io::open_safetensors(folder + "/adapter_model.safetensors");
    EXPECT_EQ(adapter->saved_tensors().size(), file->tensors().size());
  }
}

/// What loading an adapter_config.json with such a rank_pattern says.
std::string load_error(const std::string& pattern) {
  SmallModel small("tied_gqa");
  const std::string text =
      R"({"peft_type":"ADALORA","init_r":2,"total_step":9,"target_modules":["layers.0.mlp.down_proj"],)"
      R"("rank_pattern":)" +
      pattern + "}";
  try {
    adapter_options_from_peft(io::parse_json(text, "adapter_config.json"), "adapter_config.json")
        ->attach(*small.model);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(AdaLoraOptions, ARankPatternOfAnotherModelIsRefused) {
  const std::string name = R"({"model.layers.0.mlp.down_proj.lora_E":)";
  EXPECT_EQ(load_error("null"), "");
  EXPECT_EQ(load_error(name + "[true,false]}"), "");
  EXPECT_NE(load_error(name + "[true]}").find("expected 2 marks (init_r), found 1"),
            std::string::npos);
  EXPECT_NE(load_error(R"({"model.layers.7.mlp.down_proj.lora_E":[true,true]})")
                .find("expected 2 marks (init_r), found none"),
            std::string::npos);
  EXPECT_NE(load_error(name + R"([true,true],"other.lora_E":[true,true]})")
                .find("other.lora_E is no linear"),
            std::string::npos);
  EXPECT_NE(load_error(name + "[1,0]}").find("expected true and false"), std::string::npos);
}

TEST(RankAllocator, AStateOfOtherLinearsIsRefused) {
  RankSchedule schedule;
  schedule.init_r = 2;
  RankAllocator allocator(schedule);
  allocator.add({{ParameterId{0}, ParameterId{1}, ParameterId{2}}, 4, 4});
  allocator.load_state("10");
  EXPECT_EQ(allocator.state(), "10");
  allocator.load_state("");
  EXPECT_EQ(allocator.state(), "");
  for (const char* bytes : {"1", "101", "12"})
    EXPECT_THROW(allocator.load_state(bytes), DataError);
}

}  // namespace
}  // namespace shardtune::adapters
