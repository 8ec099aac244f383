// Qwen2 and Qwen2.5: llama with biases on q, k and v, and perhaps a sliding window in the layers
// from max_window_layers on. GGUF leaves its rows of q and k as they are.
// Source  Yang et al. 2024, Qwen2, arXiv:2407.10671
#include "models/llama.h"

namespace shardtune::models {

namespace {

void read_windows(const io::JsonReader& json, ModelConfig& config) {
  if (!json.boolean_or("use_sliding_window", false))
    return;
  const bool is_absent = json.object().find("sliding_window") == nullptr;
  if (!is_absent && !json.has("sliding_window"))
    return;
  const int64_t window =
      bounded_integer(json, "sliding_window", json.integer_or("sliding_window", 4096), kMaxWidth);
  const io::Json* types = json.object().find("layer_types");
  const bool has_types = types != nullptr && !types->is_null();
  if (has_types && (!types->is_array() || std::ssize(types->as_array()) != config.num_layers))
    throw DataError(json.name() + ": layer_types: expected a list of " +
                    std::to_string(config.num_layers) + " (num_hidden_layers).");
  const int64_t first = json.integer_or("max_window_layers", 28);
  for (int64_t i = 0; i < config.num_layers; ++i) {
    bool is_sliding = i >= first;
    if (has_types) {
      const io::Json& type = types->as_array()[static_cast<size_t>(i)];
      is_sliding = type.is_string() && type.as_string() == "sliding_attention";
      if (!is_sliding && !(type.is_string() && type.as_string() == "full_attention"))
        refuse_model(json.name(), "layer_types other than full_attention and sliding_attention");
    }
    config.layer_windows.push_back(is_sliding ? window : 0);
  }
}

void read_config(const io::JsonReader& json, ModelConfig& config) {
  read_llama_sizes(json, {.num_kv_heads = 32, .max_position_embeddings = 32768}, config);
  config.qkv_bias = true;
  read_windows(json, config);
}

void write_config(const ModelConfig& config, io::Json& json) {
  write_llama_sizes(config, json);
  // Only a folder has windows, and its own configuration is carried.
  json.set("use_sliding_window", false);
}

}  // namespace

Family qwen2_family() {
  Family family = llama_family();
  family.architecture = "Qwen2ForCausalLM";
  family.read_config = &read_config;
  family.write_config = &write_config;
  family.gguf.architecture = "qwen2";
  family.gguf.permutes_qk = false;
  family.gguf.has_rope_divisors = false;
  return family;
}

}  // namespace shardtune::models
