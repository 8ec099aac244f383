#include "trainer/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "core/error.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::trainer {
namespace {

constexpr const char* kMinimal = R"(model: {model_name_or_path: some/model}
data:
  train: [{path: a.jsonl}]
checkpoint: {output_dir: runs/x}
)";

constexpr const char* kFull = R"(model: {model_name_or_path: some/model, compute_dtype: float32}
quantization: {method: nf4, block_size: 128, double_quant: true}
adapter: {method: lora, lora_rank: 4, lora_alpha: 8, lora_dropout: 0.1, target_modules: [q_proj]}
data:
  train: [{path: a.jsonl, format: completion, columns: {prompt: question}}, b.jsonl]
  eval: [{path: "c d.jsonl"}]
  chat_template: chatml
  max_length: 128
  packing: false
  train_on: assistant
training:
  objective: sft
  max_steps: 20
  stop_at_step: 10
  micro_batch_size: 2
  global_batch_size: 7
  learning_rate: 3e-4
  lr_scheduler_type: cosine
  warmup_ratio: 0.03
  max_grad_norm: 0.5
  gradient_checkpointing: true
  seed: 7
optimizer: {name: adamw, betas: [0.8, 0.95], eps: 1e-6, weight_decay: 0.1}
parallel:
  device: cpu
  zero_optimization: {stage: 2, offload_optimizer: {device: none}, offload_param: {device: none, nvme_path: /tmp}}
  threads: 2
  heartbeat_seconds: 2.5
  step_timeout_seconds: 90
checkpoint: {output_dir: runs/x, save_steps: 5, save_total_limit: 2}
logging: {logging_steps: 3, tensorboard: false}
eval: {eval_steps: 4}
)";

std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(text, "run.yaml", overrides);
  } catch (const ConfigError& error) {
    return std::string("ConfigError: ") + error.what();
  } catch (const UnsupportedError& error) {
    return std::string("UnsupportedError: ") + error.what();
  }
  return "";
}

#define EXPECT_HAS(text, part) \
  EXPECT_NE((text).find(part), std::string::npos) << "in:\n" << (text) << "\n"

TEST(Config, MinimalFileGetsDefaults) {
  const RunConfig config = parse_config(kMinimal, "run.yaml", {});
  EXPECT_EQ(config.training.num_train_epochs, 3);
  EXPECT_EQ(config.training.max_steps, 0);
  EXPECT_EQ(config.quantization.method, "none");
  EXPECT_EQ(config.parallel.stage, parallel::ZeroStage::k0);
  EXPECT_TRUE(config.data.packing);
  EXPECT_EQ(config.logging.logging_steps, 1);
}

TEST(Config, EveryKeyIsRead) {
  const RunConfig config = parse_config(kFull, "run.yaml", {});
  EXPECT_EQ(config.model.compute_dtype, "float32");
  EXPECT_EQ(config.quantization.block_size, 128);
  EXPECT_TRUE(config.quantization.double_quant);
  ASSERT_EQ(config.data.train.size(), 2u);
  EXPECT_EQ(config.data.train[0].columns.at(0).second, "question");
  EXPECT_EQ(config.data.train[1].path, "b.jsonl");
  EXPECT_EQ(config.data.eval.at(0).path, "c d.jsonl");
  EXPECT_EQ(config.data.train_on, data::TrainOn::kAssistant);
  EXPECT_FALSE(config.data.packing);
  EXPECT_EQ(config.training.max_steps, 20);
  EXPECT_EQ(config.training.num_train_epochs, 0);
  EXPECT_EQ(config.training.stop_at_step, 10);
  EXPECT_EQ(config.training.global_batch_size, 7);
  EXPECT_DOUBLE_EQ(config.training.learning_rate, 3e-4);
  EXPECT_TRUE(config.training.gradient_checkpointing);
  EXPECT_EQ(config.training.seed, 7u);
  EXPECT_DOUBLE_EQ(config.optimizer.weight_decay, 0.1);
  EXPECT_EQ(config.parallel.stage, parallel::ZeroStage::k2);
  EXPECT_EQ(config.parallel.threads, 2);
  EXPECT_EQ(config.parallel.heartbeat_seconds, 2.5);
  EXPECT_EQ(config.parallel.step_timeout_seconds, 90.0);
  EXPECT_EQ(config.checkpoint.save_total_limit, 2);
  EXPECT_EQ(config.eval.eval_steps, 4);
}

TEST(Config, ResolvedTextReadsBackAsItself) {
  for (const char* text : {kMinimal, kFull}) {
    const std::string resolved = resolved_text(parse_config(text, "run.yaml", {}));
    EXPECT_EQ(resolved, resolved_text(parse_config(resolved, "resolved.yaml", {}))) << resolved;
  }
  EXPECT_HAS(resolved_text(parse_config(kFull, "run.yaml", {})), "learning_rate: 0.0003");
}

TEST(Config, DefaultsAndTheSameValuesWrittenOutResolveEqually) {
  const std::string written = std::string(kMinimal) +
                              "training: {num_train_epochs: 3, seed: 42}\n" +
                              "optimizer: {betas: [0.9, 0.999]}\nlogging: {logging_steps: 1}\n";
  EXPECT_EQ(config_hash(parse_config(kMinimal, "a", {})),
            config_hash(parse_config(written, "b", {})));
}

TEST(Config, AllProblemsAreToldAtOnceWithFileAndLine) {
  const std::string text = error_of(R"(model: {model_name_or_path: some/model}
adapter:
  method: lora
  lora_alhpa: 32
  lora_rank: sixteen
data:
  train: [{path: a.jsonl}]
training:
  micro_batch_size: 0
  global_batch_size: many
checkpoint: {output_dir: runs/x}
trainig: {}
)");
  EXPECT_HAS(text, "run.yaml:4: adapter");
  EXPECT_HAS(text, "lora_alhpa");
  EXPECT_HAS(text, "did you mean 'lora_alpha'");
  EXPECT_HAS(text, "run.yaml:5: adapter.lora_rank: expected an integer");
  EXPECT_HAS(text, "run.yaml:9: training.micro_batch_size");
  EXPECT_HAS(text, "run.yaml:10: training.global_batch_size");
  EXPECT_HAS(text, "run.yaml:12:");
  EXPECT_HAS(text, "did you mean 'training'");
}

TEST(Config, MissingKeysAreNamed) {
  const std::string text = error_of("training: {seed: 1}\n");
  EXPECT_HAS(text, "model_name_or_path");
  EXPECT_HAS(text, "output_dir");
  EXPECT_HAS(text, "train: [{path: train.jsonl}]");
  EXPECT_FALSE(error_of("").empty());
}

TEST(Config, SpellingsOfOtherTrainersNameTheKeyThatIsMeant) {
  const std::string text = error_of(R"(base_model: x
model: {model_name_or_path: some/model, torch_dtype: bfloat16}
adapter: {r: 8}
data: {train: [{path: a}], cutoff_len: 512}
training: {per_device_train_batch_size: 4, gradient_accumulation_steps: 2}
checkpoint: {output_dir: runs/x}
)");
  EXPECT_HAS(text, "model.model_name_or_path");
  EXPECT_HAS(text, "model.compute_dtype");
  EXPECT_HAS(text, "lora_rank");
  EXPECT_HAS(text, "data.max_length");
  EXPECT_HAS(text, "training.micro_batch_size");
  EXPECT_HAS(text, "training.global_batch_size");
}

TEST(Config, DeepSpeedKeysWithoutEffectAreRefusedWithTheReason) {
  const std::string text = error_of(
      std::string(kMinimal) +
      "parallel: {zero_optimization: {stage: 2, overlap_comm: true, reduce_bucket_size: 5e8, "
      "offload_optimizer: {device: none, pin_memory: true}}}\n");
  EXPECT_HAS(text, "overlap_comm");
  EXPECT_HAS(text, "reduce_bucket_size");
  EXPECT_HAS(text, "pin_memory");
  EXPECT_HAS(text, "has no effect here");
}

TEST(Config, OffloadNeedsADeviceThatGainsSomethingAndAFolder) {
  const std::string zero = "parallel.zero_optimization=";
  EXPECT_HAS(error_of(kMinimal, {zero + "{offload_optimizer: {device: cpu}}"}),
             "there is nothing to gain. Write 'device: nvme'");
  EXPECT_HAS(error_of(kMinimal, {zero + "{offload_param: {device: nvme}}"}),
             "offload_param.nvme_path: expected a folder");
  for (const char* aio : {"aio={queue_depth: 8}", "parallel.aio={block_size: 1048576}"})
    EXPECT_HAS(error_of(kMinimal, {aio}), "chosen by the program");
  for (const char* key : {"buffer_count: 4", "pin_memory: true", "pipeline_read: true",
                          "pipeline_write: true", "fast_init: true", "ratio: 0.5"})
    EXPECT_HAS(error_of(kMinimal, {zero + "{offload_optimizer: {device: nvme, nvme_path: /tmp, " +
                                   key + "}}"}),
               "has no effect here");
  const std::string chosen = "{stage: 1, offload_optimizer: {device: nvme, nvme_path: /tmp}}";
  const RunConfig config = parse_config(kMinimal, "run.yaml", {zero + chosen});
  EXPECT_TRUE(config.parallel.offload_optimizer.is_nvme());
  EXPECT_HAS(resolved_text(config), "offload_optimizer: {device: nvme, nvme_path: \"/tmp\"}");
  // Where states live is no part of what a resume must agree on.
  EXPECT_EQ(resume_keys(config), resume_keys(parse_config(kMinimal, "run.yaml", {})));
}

TEST(Config, EvalSplitIsAShareOrACount) {
  const auto with = [](const std::vector<std::string>& overrides) {
    return parse_config(kMinimal, "run.yaml", overrides);
  };
  EXPECT_EQ(with({"data.eval_split=0.05", "eval.eval_steps=2"}).data.eval_split, 0.05);
  EXPECT_EQ(with({"data.eval_split=200"}).data.eval_split, 200.0);
  EXPECT_HAS(resolved_text(with({"data.eval_split=0.05"})), "eval_split: 0.05");
  EXPECT_EQ(resolved_text(with({})).find("eval_split"), std::string::npos);
  EXPECT_HAS(error_of(kMinimal, {"data.eval_split=1.5"}), "a share below 1 or a whole number");
  EXPECT_HAS(error_of(kMinimal, {"data.eval_split=-0.1"}), "eval_split");
  EXPECT_HAS(error_of(kMinimal, {"data.eval_split=0.1", "data.eval=[{path: e.jsonl}]"}),
             "either data.eval or data.eval_split");
  EXPECT_HAS(error_of(kMinimal, {"eval.eval_steps=2"}), "eval_split: 0.05");
}

TEST(Config, FeaturesToComeAreRefusedByName) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"parallel.device=cuda", "device cuda"},
      {"training.objective=dpo", "objective 'dpo'"},
  };
  for (const auto& [assignment, word] : cases) {
    const std::string text = error_of(kMinimal, {assignment});
    EXPECT_EQ(text.rfind("UnsupportedError", 0), 0u) << assignment << ": " << text;
    EXPECT_HAS(text, word);
    EXPECT_HAS(text, "docs/status.md");
    EXPECT_HAS(text, "--set ");
  }
}

TEST(Config, ASharedBaseNeedsAWholeOneInMemory) {
  const std::string share = "parallel.share_base_per_host=true";
  for (const char* stage : {"0", "1", "2"}) {
    const RunConfig config = parse_config(
        kMinimal, "run.yaml", {share, std::string("parallel.zero_optimization.stage=") + stage});
    EXPECT_EQ(config.parallel.base_sharing, parallel::BaseSharing::kPerHost);
    EXPECT_HAS(resolved_text(config), "share_base_per_host: true");
    EXPECT_EQ(resume_keys(config), resume_keys(parse_config(kMinimal, "run.yaml", {})));
  }
  EXPECT_HAS(error_of(kMinimal, {share, "parallel.zero_optimization.stage=3"}),
             "parallel.share_base_per_host: expected false with stage 3, found true");
  EXPECT_HAS(error_of(kMinimal, {share,
                                 "parallel.zero_optimization.offload_param={device: nvme, "
                                 "nvme_path: /tmp}"}),
             "parallel.share_base_per_host: expected false with offload_param on nvme");
  // Optimizer states are another matter.
  parse_config(
      kMinimal, "run.yaml",
      {share, "parallel.zero_optimization.offload_optimizer={device: nvme, nvme_path: /tmp}"});
}

TEST(Config, ContradictionsAreErrors) {
  EXPECT_HAS(error_of(std::string(kMinimal) + "training: {micro_batch_size: 8, "
                                              "global_batch_size: 4}\n"),
             "at least micro_batch_size (8), found 4");
  EXPECT_HAS(error_of(std::string(kMinimal) + "training: {max_steps: 8, num_train_epochs: 4}\n"),
             "either max_steps or num_train_epochs");
  EXPECT_HAS(error_of(std::string(kMinimal) +
                      "training: {lr_scheduler_type: constant, warmup_ratio: 0.1}\n"),
             "constant_with_warmup");
  EXPECT_HAS(error_of(std::string(kMinimal) + "eval: {eval_steps: 5}\n"), "data.eval");
  EXPECT_HAS(error_of(kMinimal, {"quantization={method: nf4, block_size: 100}"}), "power of two");
  EXPECT_HAS(error_of(kMinimal, {"training.objective=pretrain", "data.train_on=completion"}),
             "train_on");
}

TEST(Config, AStepCountOnTheCommandLineReplacesTheEpochsOfTheFile) {
  const std::string text = std::string(kMinimal) + "training: {num_train_epochs: 4}\n";
  const RunConfig config = parse_config(text, "run.yaml", {"training.max_steps=2"});
  EXPECT_EQ(config.training.max_steps, 2);
  EXPECT_EQ(config.training.num_train_epochs, 0);
  const std::string steps = std::string(kMinimal) + "training: {max_steps: 4}\n";
  EXPECT_EQ(parse_config(steps, "run.yaml", {"training.num_train_epochs=2"}).training.max_steps, 0);
}

TEST(Config, ResumeKeysLeaveOutWhatMayChange) {
  const RunConfig a = parse_config(kFull, "run.yaml", {});
  const RunConfig b = parse_config(
      kFull, "run.yaml",
      {"parallel.zero_optimization={stage: 0}", "parallel.threads=1",
       "parallel.heartbeat_seconds=1", "parallel.step_timeout_seconds=0", "logging.logging_steps=1",
       "checkpoint.save_steps=9", "checkpoint.output_dir=y", "training.stop_at_step=0"});
  EXPECT_EQ(resume_keys(a), resume_keys(b));
  const RunConfig c = parse_config(kFull, "run.yaml", {"training.learning_rate=1e-3"});
  EXPECT_NE(resume_keys(a), resume_keys(c));
}

TEST(Config, MissingFileIsAnInputError) {
  EXPECT_THROW(load_config("/no/such/file.yaml", {}), MissingInputError);
}

TEST(Config, EveryFileOfTheConfigsFolderIsValid) {
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(SHARDTUNE_SOURCE_DIR) + "/configs")) {
    if (entry.path().extension() != ".yaml")
      continue;
    EXPECT_NO_THROW(load_config(entry.path(), {})) << entry.path();
    ++count;
  }
  EXPECT_GT(count, 0);
}

// Mutated files end in a configuration or in one of the two errors, never in anything else.
TEST(Config, MutatedFilesNeverCrash) {
  std::mt19937 random(1);
  const std::string original = kFull;
  const std::string alphabet = "{}[]:,-#'\"&*!|>%@`~ \n\t0123456789abcdefnull.eE+\\\x01\xff";
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = original;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int e = 0; e < edits; ++e) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        case 2:
          text.erase(at, 1 + random() % 8);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
    }
    try {
      parse_config(text, "run.yaml", {});
    } catch (const Error& error) {
      ++refused;
      ASSERT_EQ(error.exit_code(), ExitCode::kUsage) << error.what();
      ASSERT_NE(std::string(error.what()).find("run.yaml"), std::string::npos) << error.what();
    }
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace shardtune::trainer
