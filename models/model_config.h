// What a model is, read from config.json or GGUF metadata, whatever the file spelled it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/json.h"

namespace shardtune::models {

struct ModelConfig {
  std::string model_type;  // "llama"
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  std::vector<int64_t> eos_token_ids;
  int64_t bos_token_id = -1;
  int64_t pad_token_id = -1;

  int64_t q_features() const { return num_heads * head_dim; }
  int64_t kv_features() const { return num_kv_heads * head_dim; }
};

/// Errors  UnsupportedError: model_type, rope scaling, activation or quantization_config that is
///         not there yet; DataError: sizes missing, out of range or that do not fit together
ModelConfig parse_model_config(const io::Json& config, const std::string& name);
ModelConfig parse_gguf_config(const io::GgufFile& file);
/// config.json of the merged model, as transformers 5 reads it; dtype "bfloat16" | "float32" ...
io::Json to_config_json(const ModelConfig& config, const std::string& dtype);

}  // namespace shardtune::models
