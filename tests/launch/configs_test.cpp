// The files of configs/, each for two steps by the program: tiny models and records stand under the
// names that the files give. (configs/adapters: tests/trainer/adapter_methods_test.cpp.)
#include <gtest/gtest.h>

#include "io/json.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using testing::write_text;

class ConfigsFolder : public ProgramFolder {
 public:
  ConfigsFolder() {
    testing::make_tiny_model(path("gpt2"), {.model_type = "gpt2"});
    fs::create_directories(path("data/samples"));
    fs::copy(path("train.jsonl"), path("data/samples/train.jsonl"));
    std::string problems;
    std::string calls;
    for (int i = 0; i < 80; ++i) {
      const std::string n = std::to_string(i);
      problems += R"({"question": "What is )" + n + R"( and 1?", "answer": "#### )" +
                  std::to_string(i + 1) + "\"}\n";
      calls +=
          (i > 0 ? "," : "") +
          std::string(R"({"conversations": [{"from": "human", "value": "Add 1 to )") + n +
          R"("}, {"from": "function_call", "value": "{\"add\": )" + n +
          R"(}"}, {"from": "observation", "value": "done"}, {"from": "gpt", "value": "It is )" +
          std::to_string(i + 1) + R"("}], "tools": "[\"add\"]"})";
    }
    write_text(path("gsm8k_train.jsonl"), problems);
    write_text(path("glaive.json"), "[" + calls + "]");
  }
};

std::vector<fs::path> config_files() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(std::string(SHARDTUNE_SOURCE_DIR) + "/configs")) {
    if (entry.path().extension() == ".yaml")
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(Configs, EachTrainsTwoSteps) {
  const ConfigsFolder folder;
  const std::vector<fs::path> files = config_files();
  EXPECT_GE(files.size(), 7u);
  for (const fs::path& file : files) {
    const std::string text = read_text(file);
    const std::string model = text.find("model_name_or_path: gpt2") != std::string::npos
                                  ? ""
                                  : " --set model.model_name_or_path=model"
                                    " --set data.chat_template=chatml";
    const bool is_evaluated = text.find("eval_split") != std::string::npos;
    const Outcome outcome = folder.run(
        "train " + testing::quoted(file.string()) + model +
        " --set checkpoint.output_dir=out --set training.max_steps=2 --set data.max_length=384" +
        (is_evaluated ? " --set eval.eval_steps=1" : "") + " --resume never --json");
    ASSERT_EQ(outcome.code, 0) << file << outcome.err;
    const io::Json result = io::parse_json(outcome.out, "stdout");
    EXPECT_EQ(result.find("steps")->as_integer(), 2) << file;
    EXPECT_EQ(result.find("eval_loss")->is_null(), !is_evaluated) << file;
    const bool has_events = text.find("tensorboard: true") != std::string::npos;
    EXPECT_EQ(fs::exists(folder.path("out/tensorboard")), has_events) << file;
    EXPECT_TRUE(fs::exists(folder.path("out/adapter"))) << file;
    fs::remove_all(folder.path("out"));
  }
}

/// Every sample is in one set and only there, and the same ones on any number of steps.
TEST(Configs, WhatIsSplitOffIsNotTrainedOn) {
  const ConfigsFolder folder;
  const std::string config = std::string(SHARDTUNE_SOURCE_DIR) + "/configs/sft_gsm8k.yaml";
  const std::string options =
      " --set model.model_name_or_path=model --set data.chat_template=chatml";
  const Outcome outcome =
      folder.run("audit " + testing::quoted(config) + options + " --samples 80 --json");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const io::Json json = io::parse_json(outcome.out, "stdout");
  EXPECT_EQ(json.find("num_samples")->as_integer(), 48);
  EXPECT_EQ(json.find("num_eval_samples")->as_integer(), 32);
}

}  // namespace
}  // namespace shardtune::launch
