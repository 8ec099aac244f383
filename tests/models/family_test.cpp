// Families beside llama against transformers on small random models: whole logits from folders and
// GGUF files, LoRA's logits, loss and gradients against PEFT, decoding through the cache, and what
// configurations are refused.
#include "models/family.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "adapters/adapter.h"
#include "inference/generate.h"
#include "models/head.h"
#include "models/rope_scaling.h"
#include "objectives/sft.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::models {
namespace {

using testing::golden;
using testing::largest;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallModel;

/// The fixed batch of a golden, both sequences in one, and what was computed from it.
struct Expected {
  std::unique_ptr<io::TensorSource> file;
  std::vector<std::vector<int32_t>> ids, labels;
  TokenBatch batch;

  explicit Expected(const std::string& path) : file(io::open_safetensors(golden(path))) {
    for (const char* i : {"0", "1"}) {
      ids.push_back(read_int32(*file, std::string("input_ids_") + i));
      labels.push_back(read_int32(*file, std::string("labels_") + i));
    }
    batch = make_batch(ids, labels);
  }

  void compare_logits(SmallModel& small, const ForwardOptions& options) const {
    Tape tape(small.store, autograd::Recording::kOff);
    const Variable hidden = small.model->forward(tape, options);
    const Tensor logits = head_logits(small.model->head(), hidden.value());
    const int64_t vocab = small.model->config().vocab_size;
    int64_t row = 0;
    for (size_t s = 0; s < ids.size(); ++s) {
      const auto want = read_tensor(*file, "logits_" + std::to_string(s));
      const double bound = tolerance::network(64, 30) * largest(want);
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(logits.data<float>()[row * vocab + static_cast<int64_t>(i)], want[i], bound);
      row += static_cast<int64_t>(ids[s].size());
    }
  }
};

struct LogitsCase {
  const char* model;
  const char* expected;
};

class FamilyGolden : public ::testing::TestWithParam<LogitsCase> {};

TEST_P(FamilyGolden, LogitsAndLossEqualTransformers) {
  SmallModel small(GetParam().model);
  const Expected expected(GetParam().expected);
  expected.compare_logits(small, small.forward_options(expected.batch));
  const auto result =
      objectives::make_next_token()->evaluate(*small.model, small.forward_options(expected.batch));
  const float loss = read_tensor(*expected.file, "loss")[0];
  EXPECT_NEAR(result.loss_sum / static_cast<double>(result.num_trained_tokens), loss,
              tolerance::network(64, 20) * std::max(loss, 1.0f));
}

// Whatever a cache holds of a sequence, in however many pieces it came, the next token is that of
// the whole sequence: windows included.
TEST_P(FamilyGolden, DecodingThroughTheCacheGivesTheTokensOfTheWholeSequence) {
  SmallModel small(GetParam().model);
  const Expected expected(GetParam().expected);
  const int64_t vocab = small.model->config().vocab_size;
  for (const int64_t chunk : {64, 7, 4}) {
    inference::GenerationOptions options;
    options.max_new_tokens = 12;
    options.max_prefill_tokens = chunk;
    const auto results = inference::generate(*small.model, {}, expected.ids, options);
    for (size_t s = 0; s < expected.ids.size(); ++s) {
      std::vector<int32_t> whole = expected.ids[s];
      for (const int32_t id : results[s].ids) {
        const TokenBatch batch = make_batch({whole});
        Tape tape(small.store, autograd::Recording::kOff);
        const Variable hidden = small.model->forward(tape, small.forward_options(batch));
        const Tensor logits = head_logits(
            small.model->head(), hidden.value().rows(batch.num_tokens() - 1, batch.num_tokens()));
        const float* first = logits.data<float>();
        EXPECT_EQ(id, std::max_element(first, first + vocab) - first) << "chunk " << chunk;
        whole.push_back(id);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, FamilyGolden,
    ::testing::Values(
        LogitsCase{"families/mistral_window", "families/mistral_window/expected.safetensors"},
        LogitsCase{"families/qwen2_tied", "families/qwen2_tied/expected.safetensors"},
        LogitsCase{"families/linear_rope", "families/linear_rope/expected.safetensors"},
        LogitsCase{"families/qwen2_linear.gguf", "families/qwen2_linear.expected.safetensors"},
        LogitsCase{"families/llama3_rope.gguf", "llama/llama3_rope/expected.safetensors"},
        LogitsCase{"families/gpt2", "families/gpt2/expected.safetensors"},
        LogitsCase{"families/gpt2_scaled", "families/gpt2_scaled/expected.safetensors"},
        LogitsCase{"families/gpt2.gguf", "families/gpt2/expected.safetensors"}));

struct AdapterCase {
  const char* model;
  const char* adapter;
};

class FamilyLora : public ::testing::TestWithParam<AdapterCase> {};

TEST_P(FamilyLora, LogitsLossAndEveryGradientEqualPeft) {
  SmallModel small(GetParam().model);
  const Expected expected(std::string(GetParam().adapter) + "/expected.safetensors");
  const auto adapter = adapters::load_adapter(golden(GetParam().adapter), *small.model);
  small.store.seal();
  ForwardOptions options = small.forward_options(expected.batch);
  options.hooks = {adapter.get()};
  expected.compare_logits(small, options);
  for (const bool recompute : {false, true}) {
    small.store.begin_step(1);
    small.store.begin_micro_batch(0);
    options.gradient_checkpointing = recompute;
    const auto result = objectives::make_next_token()->train(
        *small.model, options, 1.0f / static_cast<float>(expected.batch.num_trained_tokens));
    small.store.end_round();
    small.store.finish_gradients();
    const double loss = result.loss_sum / static_cast<double>(result.num_trained_tokens);
    EXPECT_NEAR(loss, read_tensor(*expected.file, "loss")[0], tolerance::network(64, 30) * loss);
    for (const adapters::AdapterTensor& tensor : adapter->tensors()) {
      const auto want = read_tensor(*expected.file, "grad.base_model.model." + tensor.name);
      const auto found = small.gradient(tensor.name);
      ASSERT_EQ(found.size(), want.size());
      const double bound = tolerance::network(64, 60) * std::max(largest(want), 1e-3);
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(found[i], want[i], bound) << tensor.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Adapters, FamilyLora,
    ::testing::Values(AdapterCase{"families/mistral_window", "families/mistral_lora"},
                      AdapterCase{"families/qwen2_tied", "families/qwen2_lora"},
                      AdapterCase{"families/gpt2", "families/gpt2_lora"}));

std::string refusal(const std::string& json) {
  try {
    parse_model_config(io::parse_json(json, "config.json"), "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string config_json(const std::string& more) {
  return R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
             "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96)" +
         more + "}";
}

TEST(Family, WhatIsNotThereIsRefusedByName) {
  const auto expect = [](const std::string& json, const std::string& part) {
    EXPECT_NE(refusal(json).find(part), std::string::npos) << refusal(json);
  };
  expect(R"({"model_type": "bloom"})", "model_type 'bloom' (known: llama, mistral, qwen2, gpt2)");
  expect(config_json(R"(, "rope_scaling": {"type": "dynamic", "factor": 2.0})"),
         "rope type 'dynamic' is not supported yet (known: default, linear, llama3)");
  expect(config_json(R"(, "rope_scaling": {"type": "linear", "factor": 0.5})"), "[1, 1e6]");
  expect(config_json(R"(, "rope_scaling": {"rope_type": "llama3", "factor": 8})"),
         "low_freq_factor");
  expect(R"({"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 96,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
             "use_sliding_window": true, "layer_types": ["full_attention"]})",
         "layer_types: expected a list of 2");
  expect(R"({"model_type": "gpt2", "n_embd": 30, "n_head": 4})",
         "n_embd: expected a multiple of n_head (4), found 30");
  expect(R"({"model_type": "gpt2", "activation_function": "relu"})", "'relu' (known: gelu_new)");
  EXPECT_EQ(refusal(config_json("")), "");
}

TEST(Family, APositionThatWasNotLearnedIsRefused) {
  SmallModel small("families/gpt2");
  const TokenBatch batch = make_batch({std::vector<int32_t>(65, 5)});
  Tape tape(small.store, autograd::Recording::kOff);
  EXPECT_THROW(small.model->forward(tape, small.forward_options(batch)), DataError);
}

TEST(Family, DefaultsAreThoseOfTheClass) {
  const auto parse = [](const std::string& more) {
    const std::string json = R"({"hidden_size": 64, "intermediate_size": 48, "vocab_size": 96,
        "num_hidden_layers": 30, "num_attention_heads": 32)" +
                             more + "}";
    return parse_model_config(io::parse_json(json, "config.json"), "config.json");
  };
  const ModelConfig mistral = parse(R"(, "model_type": "mistral")");
  EXPECT_EQ(mistral.num_kv_heads, 8);
  EXPECT_EQ(mistral.window(29), 4096);
  EXPECT_EQ(parse(R"(, "model_type": "mistral", "sliding_window": null)").window(0), 0);
  const ModelConfig qwen2 = parse(R"(, "model_type": "qwen2", "use_sliding_window": true)");
  EXPECT_EQ(qwen2.num_kv_heads, 32);
  EXPECT_EQ(qwen2.window(27), 0);
  EXPECT_EQ(qwen2.window(28), 4096);
}

// From a GGUF file, which has llama3's divisors alone, to a config.json that transformers scales
// by.
TEST(Family, DivisorsOfAGgufFileBecomeTheScalingTheyCameFrom) {
  ModelConfig config;
  config.model_type = "llama";
  config.head_dim = 64;
  config.rope_theta = 500000.0;
  config.rope_scaling = {RopeType::kLlama3, 32.0, 1.0, 4.0, 8192};
  const std::vector<float> scaled = rope_frequencies(config);
  config.rope_scaling = {};
  const std::vector<float> plain = rope_frequencies(config);
  for (size_t i = 0; i < plain.size(); ++i)
    config.rope_divisors.push_back(plain[i] / scaled[i]);
  EXPECT_NEAR(rope_frequencies(config)[20], scaled[20], 1e-6 * scaled[20]);
  const io::Json json = to_config_json(config, "bfloat16");
  EXPECT_EQ(json.find("rope_parameters")->find("rope_type")->as_string(), "llama3");
  EXPECT_EQ(json.find("rope_parameters")->find("factor")->as_number(), 32.0);
  config.rope_divisors[5] *= 2.0f;
  EXPECT_THROW(to_config_json(config, "bfloat16"), UnsupportedError);
}

}  // namespace
}  // namespace shardtune::models
