// Every file of configs/adapters on the tiny model: the same bits on 1, 2 and 4 ranks, at stages 0
// to 3, with and without recompute, packed or not, and after a resume on another number of ranks.
// A method is covered by being registered: one without a configuration fails here.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <set>

#include "adapters/adapter.h"
#include "tests/io/temp_folder.h"
#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;
namespace fs = std::filesystem;
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

class AdapterRuns : public ::testing::Test {
 protected:
  RunConfig config(const std::string& file, const std::string& output,
                   const Overrides& more) const {
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
    if (file.ends_with("adalora.yaml"))  // ranks fall in step 2 and are the last in step 3
      overrides.insert(overrides.end(),
                       {"adapter.tinit=0", "adapter.tfinal=1", "adapter.deltaT=1"});
    if (file.ends_with("adaption_prompt.yaml"))
      overrides.push_back("adapter.adapter_layers=1");
    if (load_config(file, {}).adapter.options->front_tokens().tasks > 0) {
      overrides.push_back("adapter.num_tasks=2");
      overrides.push_back("data.train=[{path: " + quoted(small_.path("train.jsonl")) +
                          ", format: completion, task_id: 1}, {path: " +
                          quoted(small_.path("eval.jsonl")) + ", format: completion, task_id: 0}]");
    }
    overrides.insert(overrides.end(), more.begin(), more.end());
    return load_config(file, overrides);
  }
  static std::string stage(int number) {
    return "parallel.zero_optimization.stage=" + std::to_string(number);
  }
  void expect_the_same(const std::string& output, const std::string& reference) const {
    EXPECT_EQ(small_.losses(output), small_.losses(reference)) << output;
    EXPECT_TRUE(small_.adapter_bytes(output) == small_.adapter_bytes(reference)) << output;
  }

  explicit AdapterRuns(const testing::TinyShape& shape = {}) : small_(shape) {}

  SmallRun small_;
};

// llama has no bias that BitFit could train.
testing::TinyShape shape_for(const std::string& config) {
  testing::TinyShape shape;
  if (config.find("bitfit") != std::string::npos)
    shape.model_type = "qwen2";
  return shape;
}

class AdapterMethods : public AdapterRuns, public ::testing::WithParamInterface<std::string> {
 protected:
  AdapterMethods() : AdapterRuns(shape_for(GetParam())) {}
  void train(const std::string& output, int ranks, const Overrides& more) {
    small_.run(config(GetParam(), output, more), ranks);
  }
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

// A learning rate too small to move anything shows the values that a run starts from.
TEST(AdapterNameOrPath, GoesOnFromASavedAdapter) {
  const SmallRun small;
  for (const std::string adapter :
       {"{lora_rank: 4, target_modules: [q_proj], use_dora: true, "
        "modules_to_save: [lm_head, norm]}",
        "{lora_rank: 4, target_modules: [q_proj, embed_tokens, lm_head]}", "{method: vera, r: 8}",
        "{method: prefix_tuning, num_virtual_tokens: 3}",
        "{method: prompt_tuning, num_virtual_tokens: 3}"}) {
    small.run(small.config("first", {"adapter=" + adapter}));
    const std::vector<std::string> onward = {
        "adapter={adapter_name_or_path: \"" + small.path("first/adapter").string() + "\"}",
        "training.learning_rate=1e-30", "training.max_steps=2",
        "parallel.zero_optimization.stage=3"};
    small.run(small.config("second", onward), 2);
    EXPECT_TRUE(small.adapter_bytes("second") == small.adapter_bytes("first")) << adapter;
    small.run(small.config("third", {onward[0], "training.max_steps=2"}));
    EXPECT_FALSE(small.adapter_bytes("third") == small.adapter_bytes("first")) << adapter;
    fs::remove_all(small.path("first"));
    fs::remove_all(small.path("second"));
    fs::remove_all(small.path("third"));
  }
}

TEST(AdapterNameOrPath, WhatDoesNotBelongTogetherIsRefused) {
  const SmallRun small;
  small.run(small.config("first", {"training.max_steps=1"}));
  const std::string path = "adapter_name_or_path: \"" + small.path("first/adapter").string() + "\"";
  const auto message = [&](const std::string& adapter) {
    return io::message_of<Error>([&] { small.config("other", {"adapter=" + adapter}); });
  };
  EXPECT_NE(message("{" + path + ", lora_rank: 8}").find("adapter_config.json"), std::string::npos);
  EXPECT_NE(message("{" + path + ", method: ia3}").find("expected lora"), std::string::npos);
  EXPECT_NE(message("{adapter_name_or_path: nowhere}").find("nowhere"), std::string::npos);
  testing::TinyShape other;
  other.intermediate = 64;
  const SmallRun elsewhere(other);
  EXPECT_NE(io::message_of<Error>([&] {
              elsewhere.run(elsewhere.config("second", {"adapter={" + path + "}"}));
            }).find("the base model it was trained on"),
            std::string::npos);
}

TEST(TrainedBase, AQuantisedWeightIsRefusedBeforeLoading) {
  const SmallRun small;
  for (const std::string adapter :
       {"{method: full}", "{method: freeze, freeze_trainable_layers: 1}",
        "{target_modules: [q_proj], modules_to_save: [v_proj]}"}) {
    const std::string message =
        io::message_of<Error>([&] { small.run(small.config("run", {"adapter=" + adapter})); });
    EXPECT_NE(message.find("quantization.method nf4"), std::string::npos) << message;
  }
  const auto refusal = [&](const std::string& adapter, const std::string& dtype) {
    return io::message_of<Error>([&] {
      small.run(small.config("run", {"adapter=" + adapter, "quantization={method: none}",
                                     "model.compute_dtype=" + dtype}));
    });
  };
  EXPECT_NE(refusal("{method: full}", "int8").find("products in int8"), std::string::npos);
  EXPECT_NE(refusal("{method: bitfit}", "float32").find("no tensor that it trains"),
            std::string::npos);
  EXPECT_NE(refusal("{method: freeze, freeze_trainable_layers: 99}", "float32").find("at most"),
            std::string::npos);
  EXPECT_NE(refusal("{modules_to_save: [lm_hed]}", "float32").find("did you mean 'lm_head'"),
            std::string::npos);
  EXPECT_NE(refusal("{modules_to_save: [v_proj]}", "float32").find("among target_modules"),
            std::string::npos);
}

// Beside a quantised base, wherever its bytes lie; tied, and each table with a tensor of its own.
TEST(TrainedBase, HasTheSameBitsWithEveryOffload) {
  const SmallRun small;
  const std::string nvme = "{device: nvme, nvme_path: \"" + small.path("model").string() + "\"}";
  const std::string both = ", offload_param: " + nvme + ", offload_optimizer: " + nvme + "}";
  for (const std::string tie : {"true", "false"}) {
    const std::vector<std::string> common = {
        "adapter={lora_rank: 4, target_modules: [q_proj], ensure_weight_tying: " + tie +
            ", modules_to_save: [embed_tokens, norm]}",
        "training.max_steps=2", "training.micro_batch_size=1", "training.global_batch_size=3"};
    const auto run = [&](const std::string& output, int ranks, const std::string& more) {
      auto overrides = common;
      overrides.push_back(more);
      small.run(small.config(output + tie, overrides), ranks);
      EXPECT_EQ(small.losses(output + tie), small.losses("whole" + tie)) << output;
      EXPECT_TRUE(small.adapter_bytes(output + tie) == small.adapter_bytes("whole" + tie))
          << output;
    };
    run("whole", 1, "parallel.zero_optimization={stage: 0}");
    run("nvme2", 2, "parallel.zero_optimization={stage: 2" + both);
    run("nvme3", 2, "parallel.zero_optimization={stage: 3" + both);
    run("recompute", 3, "training.gradient_checkpointing=true");
  }
  EXPECT_FALSE(small.losses("wholetrue") == small.losses("wholefalse"));
}

TEST(LoraTables, HaveTheSameBitsWithEveryOffload) {
  const SmallRun small;
  const std::string nvme = "{device: nvme, nvme_path: \"" + small.path("model").string() + "\"}";
  const std::string both = ", offload_param: " + nvme + ", offload_optimizer: " + nvme + "}";
  const auto run = [&](const std::string& output, int ranks, const std::string& more) {
    small.run(small.config(output, {"adapter={lora_rank: 4, lora_dropout: 0.1, "
                                    "target_modules: [q_proj, embed_tokens, lm_head]}",
                                    "training.max_steps=2", "training.micro_batch_size=1",
                                    "training.global_batch_size=3", more}),
              ranks);
    EXPECT_EQ(small.losses(output), small.losses("whole")) << output;
    EXPECT_TRUE(small.adapter_bytes(output) == small.adapter_bytes("whole")) << output;
  };
  run("whole", 1, "parallel.zero_optimization={stage: 0}");
  run("nvme2", 2, "parallel.zero_optimization={stage: 2" + both);
  run("nvme3", 2, "parallel.zero_optimization={stage: 3" + both);
  run("recompute", 3, "training.gradient_checkpointing=true");
}

// Masks belong to micro-batches, wherever they are run; COFT's ball is that of whole rows.
TEST(AdapterDropout, HasTheSameBitsOnAnyRanksStagesAndRecompute) {
  const SmallRun small;
  for (const std::string method :
       {"loha, r: 4, rank_dropout: 0.3, module_dropout: 0.4", "lokr, r: 4, rank_dropout: 0.3",
        "oft, oft_block_size: 8, module_dropout: 0.3, coft: true, eps: 0.02",
        "boft, boft_dropout: 0.3"}) {
    const auto run = [&](const std::string& output, int ranks, const Overrides& more) {
      Overrides overrides = {"adapter={method: " + method + "}", "training.max_steps=4",
                             "training.micro_batch_size=1", "training.global_batch_size=3",
                             "checkpoint.save_steps=0"};
      overrides.insert(overrides.end(), more.begin(), more.end());
      small.run(small.config(output, overrides), ranks);
    };
    const auto expect_same = [&](const std::string& output) {
      EXPECT_EQ(small.losses(output), small.losses("whole")) << method << " " << output;
      EXPECT_TRUE(small.adapter_bytes(output) == small.adapter_bytes("whole")) << output;
    };
    run("whole", 1, {"parallel.zero_optimization.stage=0"});
    run("stage3", 3,
        {"parallel.zero_optimization.stage=3", "training.gradient_checkpointing=true"});
    expect_same("stage3");
    run("resumed", 2, {"parallel.zero_optimization.stage=1", "training.stop_at_step=2"});
    run("resumed", 4, {"parallel.zero_optimization.stage=2"});
    expect_same("resumed");
    for (const char* output : {"whole", "stage3", "resumed"})
      fs::remove_all(small.path(output));
  }
}

// The base is loaded twice, wherever its bytes lie, and the ranks are the same.
TEST(EvaRanks, HaveTheSameBitsWithEveryOffloadAndBase) {
  const SmallRun small;
  const std::string nvme = "{device: nvme, nvme_path: \"" + small.path("model").string() + "\"}";
  const std::string both = ", offload_param: " + nvme + ", offload_optimizer: " + nvme + "}";
  const auto run = [&](const std::string& output, const std::string& reference, int ranks,
                       const Overrides& more) {
    Overrides overrides = {
        "adapter={lora_rank: 2, init_lora_weights: eva, modules_to_save: [norm]}",
        "training.max_steps=2", "training.micro_batch_size=1", "training.global_batch_size=3"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    small.run(small.config(output, overrides), ranks);
    EXPECT_EQ(small.losses(output), small.losses(reference)) << output;
    EXPECT_TRUE(small.adapter_bytes(output) == small.adapter_bytes(reference)) << output;
  };
  run("whole", "whole", 1, {"parallel.zero_optimization={stage: 0}"});
  run("nvme2", "whole", 2, {"parallel.zero_optimization={stage: 2" + both});
  run("nvme3", "whole", 2, {"parallel.zero_optimization={stage: 3" + both});
  run("shared", "whole", 3, {"parallel.share_base_per_host=true"});
  const std::string merge_aware = "adapter.merge_aware=true";
  run("aware", "aware", 1, {merge_aware});
  run("aware3", "aware", 3, {merge_aware, "parallel.zero_optimization={stage: 3}"});
  const std::string int8 = "model.compute_dtype=int8";
  run("int8", "int8", 1, {int8});
  run("int8nvme", "int8", 2, {int8, "parallel.zero_optimization={stage: 3" + both});
  const io::Json config =
      io::read_json_file(small.path("whole/adapter/adapter_config.json").string());
  EXPECT_FALSE(config.find("rank_pattern")->as_object().empty());
}

/// What a run with so many virtual tokens says before it loads anything.
class VirtualTokensOfRuns : public AdapterRuns {
 protected:
  std::string refusal_of(const std::string& name, const Overrides& more) {
    const std::string file =
        std::string(SHARDTUNE_SOURCE_DIR) + "/configs/adapters/" + name + ".yaml";
    try {
      small_.run(config(file, "refused", more));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(VirtualTokensOfRuns, AsManyAsARowHasAreRefused) {
  EXPECT_NE(refusal_of("p_tuning_v2", {"adapter.num_virtual_tokens=96"})
                .find("adapter.num_virtual_tokens: expected less than data.max_length (96)"),
            std::string::npos);
}

TEST_F(VirtualTokensOfRuns, TasksAreThoseOfTheDataFiles) {
  const std::string name = "multitask_prompt_tuning";
  const auto with = [&](const std::string& task) {
    return Overrides{"data.train=[{path: \"" + small_.path("train.jsonl").string() +
                     "\", format: completion" + task + "}]"};
  };
  EXPECT_NE(refusal_of(name, with("")).find("expected one of the adapter's 2 tasks"),
            std::string::npos);
  EXPECT_NE(refusal_of(name, with(", task_id: 2")).find("expected less than adapter.num_tasks (2)"),
            std::string::npos);
  EXPECT_NE(
      refusal_of("p_tuning_v2", with(", task_id: 0")).find("has no effect with adapter.method"),
      std::string::npos);
}

// Rows hold the virtual tokens of their samples: a sample that fills a row is cut.
TEST_F(VirtualTokensOfRuns, TakeRoomInTheRows) {
  EXPECT_NE(refusal_of("prompt_tuning", {"adapter.num_virtual_tokens=96"}).find("less than"),
            std::string::npos);
  EXPECT_EQ(refusal_of("prompt_tuning", {"data.max_length=512"}), "");  // the whole context
}

TEST_F(VirtualTokensOfRuns, WithoutRoomInTheContextAreRefused) {
  EXPECT_NE(refusal_of("p_tuning_v2", {"data.max_length=493"}).find("Write 'max_length: 492'"),
            std::string::npos);
  EXPECT_EQ(refusal_of("p_tuning_v2", {"data.max_length=492"}), "");
}

TEST(AdapterConfigs, CoverEveryRegisteredMethod) {
  std::set<std::string> methods;
  for (const std::string& path : configurations())
    methods.insert(std::string(load_config(path, {}).adapter.options->method()));
  for (const std::string& name : adapters::adapter_methods().names())
    EXPECT_TRUE(methods.contains(name)) << "no configuration in configs/adapters for " << name;
}

}  // namespace
}  // namespace shardtune::trainer
