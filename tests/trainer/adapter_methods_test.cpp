// Every file of configs/adapters on the tiny model: the same bits on 1, 2 and 4 ranks, at stages 0
// to 3, with and without recompute, packed or not, and after a resume on another number of ranks.
// A method is covered by being registered: one without a configuration fails here.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "adapters/adapter.h"
#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;
using Overrides = std::vector<std::string>;

std::vector<std::string> configurations() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(SHARDTUNE_SOURCE_DIR) +
                                                               "/configs/adapters")) {
    if (entry.path().extension() == ".yaml")
      paths.push_back(entry.path().string());
  }
  std::ranges::sort(paths);
  return paths;
}

class AdapterMethods : public ::testing::TestWithParam<std::string> {
 protected:
  RunConfig config(const std::string& output, const Overrides& more) const {
    const auto quoted = [](const std::filesystem::path& path) {
      return "\"" + path.string() + "\"";
    };
    Overrides overrides = {
        "model.model_name_or_path=" + quoted(small_.path("model")),
        "model.compute_dtype=float32",
        "data.train=[{path: " + quoted(small_.path("train.jsonl")) + ", format: completion}]",
        "data.chat_template=chatml",
        "data.max_length=96",
        "training.micro_batch_size=1",
        "training.global_batch_size=5",
        "training.max_steps=3",
        "training.warmup_ratio=0",
        "checkpoint.save_steps=0",
        "parallel.threads=1",
        "checkpoint.output_dir=" + quoted(small_.path(output))};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return load_config(GetParam(), overrides);
  }
  void train(const std::string& output, int ranks, const Overrides& more) {
    small_.run(config(output, more), ranks);
  }
  static std::string stage(int number) {
    return "parallel.zero_optimization.stage=" + std::to_string(number);
  }
  void expect_the_same(const std::string& output, const std::string& reference) const {
    EXPECT_EQ(small_.losses(output), small_.losses(reference)) << output;
    EXPECT_TRUE(small_.adapter_bytes(output) == small_.adapter_bytes(reference)) << output;
  }

  // llama has no bias that BitFit could train.
  static testing::TinyShape shape() {
    testing::TinyShape shape;
    if (GetParam().find("bitfit") != std::string::npos)
      shape.model_type = "qwen2";
    return shape;
  }

  SmallRun small_{shape()};
};

TEST_P(AdapterMethods, HasTheSameBitsOnAnyRanksStagesAndRecompute) {
  train("reference", 1, {stage(0)});
  const std::vector<std::string> losses = small_.losses("reference");
  ASSERT_EQ(losses.size(), 3u);
  EXPECT_NE(losses.front(), losses.back());
  train("ranks2stage1", 2, {stage(1)});
  train("ranks4stage2recompute", 4, {stage(2), "training.gradient_checkpointing=true"});
  train("ranks4stage3", 4, {stage(3)});
  for (const char* output : {"ranks2stage1", "ranks4stage2recompute", "ranks4stage3"})
    expect_the_same(output, "reference");
}

TEST_P(AdapterMethods, GoesOnAfterAStopAsIfThereHadBeenNone) {
  const Overrides bf16 = {"model.compute_dtype=bfloat16", "data.packing=false"};
  Overrides whole = bf16;
  whole.push_back(stage(3));
  train("whole", 2, whole);
  Overrides first = bf16;
  first.insert(first.end(), {stage(0), "training.stop_at_step=2"});
  train("resumed", 1, first);
  Overrides rest = bf16;
  rest.push_back(stage(3));
  train("resumed", 3, rest);
  expect_the_same("resumed", "whole");
}

INSTANTIATE_TEST_SUITE_P(Configs, AdapterMethods, ::testing::ValuesIn(configurations()),
                         [](const auto& info) {
                           return std::filesystem::path(info.param).stem().string();
                         });

TEST(AdapterConfigs, CoverEveryRegisteredMethod) {
  std::set<std::string> methods;
  for (const std::string& path : configurations())
    methods.insert(std::string(load_config(path, {}).adapter.options->method()));
  for (const std::string& name : adapters::adapter_methods().names())
    EXPECT_TRUE(methods.contains(name)) << "no configuration in configs/adapters for " << name;
}

}  // namespace
}  // namespace shardtune::trainer
