// What a model is, read from config.json or GGUF metadata, whatever the file spelled it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/gguf.h"
#include "io/json.h"

namespace shardtune::models {

enum class RopeType { kDefault, kLinear, kLlama3 };
struct RopeScaling {
  RopeType type = RopeType::kDefault;
  double factor = 1.0;  // linear, llama3
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
};

struct ModelConfig {
  std::string model_type;  // a name of models/registry.cpp
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  std::vector<float> rope_divisors;  // [head_dim / 2] of a GGUF file's rope_freqs.weight, or empty
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool output_bias = false;  // of the attention's output projection
  bool mlp_bias = false;
  bool scales_attention = true;            // by 1 / sqrt(head_dim)
  bool scales_attention_by_layer = false;  // by 1 / (layer + 1) too
  /// Sliding window of each layer, 0 = none; empty: no layer has one.
  std::vector<int64_t> layer_windows;
  std::vector<int64_t> eos_token_ids;
  int64_t bos_token_id = -1;
  int64_t pad_token_id = -1;

  int64_t q_features() const { return num_heads * head_dim; }
  int64_t kv_features() const { return num_kv_heads * head_dim; }
  int64_t window(int64_t layer) const {
    return layer_windows.empty() ? 0 : layer_windows[static_cast<size_t>(layer)];
  }
};

/// Whether Hugging Face's files hold this weight as [in,out] (a Conv1D module).
bool is_conv1d(const ModelConfig& config, std::string_view tensor);

/// Errors  UnsupportedError: model_type, rope scaling, activation or quantization_config that is
///         not there yet; DataError: sizes missing, out of range or that do not fit together
ModelConfig parse_model_config(const io::Json& config, const std::string& name);
ModelConfig parse_gguf_config(const io::GgufFile& file);
/// config.json of the merged model, as transformers 5 reads it; dtype "bfloat16" | "float32" ...
io::Json to_config_json(const ModelConfig& config, const std::string& dtype);

}  // namespace shardtune::models
