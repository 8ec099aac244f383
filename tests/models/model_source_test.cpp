// Models on disk: configurations of every spelling, damaged ones, and GGUF against the golden
// values of the quickstart model.
#include "models/model_source.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "core/error.h"
#include "tests/support/small_model.h"

namespace shardtune::models {
namespace {

io::Json config_with(const std::string& key, io::Json value) {
  io::Json config = io::parse_json(
      R"({"model_type":"llama","hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
          "num_attention_heads":4,"vocab_size":96})",
      "config.json");
  config.set(key, std::move(value));
  return config;
}

std::string error_of(const io::Json& config) {
  try {
    parse_model_config(config, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ModelConfig, DefaultsAreThoseOfTheClass) {
  const ModelConfig config = parse_model_config(config_with("hidden_act", "silu"), "config.json");
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_DOUBLE_EQ(config.norm_eps, 1e-6);
  EXPECT_DOUBLE_EQ(config.rope_theta, 10000.0);
  EXPECT_FALSE(config.tie_word_embeddings);
}

TEST(ModelConfig, WhatIsNotThereIsNamed) {
  EXPECT_NE(error_of(config_with("model_type", "mamba")).find("'mamba'"), std::string::npos);
  EXPECT_NE(error_of(config_with("hidden_act", "gelu")).find("'gelu'"), std::string::npos);
  EXPECT_NE(error_of(config_with("quantization_config", io::Json::object())).find("quantised"),
            std::string::npos);
  io::Json rope = io::Json::object();
  rope.set("type", "yarn");
  EXPECT_NE(error_of(config_with("rope_scaling", rope)).find("'yarn'"), std::string::npos);
}

TEST(ModelConfig, HostileSizesAreRefused) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                          "num_key_value_heads", "head_dim", "intermediate_size"}) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, int64_t{1} << 40})
      EXPECT_NE(error_of(config_with(key, value)).find(key), std::string::npos) << key << value;
    EXPECT_NE(error_of(config_with(key, "many")).find(key), std::string::npos);
  }
  EXPECT_NE(error_of(config_with("num_key_value_heads", 3)).find("multiple"), std::string::npos);
  EXPECT_NE(error_of(config_with("head_dim", 7)).find("odd"), std::string::npos);
  EXPECT_NE(error_of(config_with("rms_norm_eps", -1.0)).find("rms_norm_eps"), std::string::npos);
}

TEST(ModelConfig, WrittenConfigReadsBack) {
  const auto source = open_model_source(testing::golden_llama("head_dim"));
  const ModelConfig config =
      parse_model_config(to_config_json(source->config(), "bfloat16"), "written");
  EXPECT_EQ(config.head_dim, source->config().head_dim);
  EXPECT_EQ(config.num_kv_heads, source->config().num_kv_heads);
  EXPECT_DOUBLE_EQ(config.rope_theta, source->config().rope_theta);
  EXPECT_EQ(config.tie_word_embeddings, source->config().tie_word_embeddings);
}

TEST(ModelSource, MissingPathsAreNamed) {
  EXPECT_THROW(open_model_source("/nowhere/model"), MissingInputError);
  EXPECT_THROW(open_model_source(std::string(SHARDTUNE_SOURCE_DIR) + "/docs"), MissingInputError);
  EXPECT_THROW(open_model_source(std::string(SHARDTUNE_SOURCE_DIR) + "/CMakeLists.txt"),
               UnsupportedError);
}

TEST(ModelSource, ContentHashFollowsTheWeights) {
  const auto a = open_model_source(testing::golden_llama("tied_gqa"));
  const auto again = open_model_source(testing::golden_llama("tied_gqa"));
  const auto b = open_model_source(testing::golden_llama("head_dim"));
  EXPECT_EQ(a->content_hash(), again->content_hash());
  EXPECT_NE(a->content_hash(), b->content_hash());
}

std::string quickstart_model() {
  if (const char* path = std::getenv("SHARDTUNE_MODEL"))
    return path;
  const char* home = std::getenv("HOME");
  return std::string(home == nullptr ? "" : home) +
         "/.cache/shardtune/SmolLM2-135M-Instruct.Q4_1.gguf";
}

TEST(GgufSource, QuickstartModelHasItsGoldenValues) {
  if (!std::filesystem::exists(quickstart_model()))
    GTEST_SKIP() << "the quickstart model is not here; launch/setup.sh fetches it";
  const auto source = open_model_source(quickstart_model());
  EXPECT_EQ(source->config().num_layers, 30);
  EXPECT_EQ(source->config().vocab_size, 49152);
  EXPECT_TRUE(source->config().tie_word_embeddings);
  // File order rows 0 and 1 of blk.0.attn_q are rows 0 and 32 in Hugging Face's order; the golden
  // first values are row 0's.
  std::vector<float> rows(576 * 576);
  source->read_rows("model.layers.0.self_attn.q_proj.weight", 0, 576, rows.data());
  EXPECT_FLOAT_EQ(rows[0], -0.09631348f);
  EXPECT_FLOAT_EQ(rows[1], 0.15734863f);
  double sum = 0.0;
  for (const float value : rows)
    sum += value;
  EXPECT_NEAR(sum, 59.223221, 1e-4);
  // One row alone is the same as that row of the whole.
  std::vector<float> one(576);
  source->read_rows("model.layers.0.self_attn.q_proj.weight", 33, 34, one.data());
  EXPECT_TRUE(std::equal(one.begin(), one.end(), rows.begin() + 33 * 576));
}

}  // namespace
}  // namespace shardtune::models
