// Mistral: llama with a sliding window in every layer and no biases. GGUF files call it llama, and
// know no window.
// Source  Jiang et al. 2023, Mistral 7B, arXiv:2310.06825
#include "models/llama.h"

namespace shardtune::models {

namespace {

void read_config(const io::JsonReader& json, ModelConfig& config) {
  read_llama_sizes(json, {.num_kv_heads = 8, .max_position_embeddings = 131072}, config);
  if (json.has("layer_types"))
    refuse_model(json.name(), "layer_types in a mistral model (windows that alternate)");
  // Absent is the class's default; null is no window.
  const bool is_absent = json.object().find("sliding_window") == nullptr;
  const int64_t window = json.integer_or("sliding_window", is_absent ? 4096 : 0);
  if (is_absent || json.has("sliding_window"))
    bounded_integer(json, "sliding_window", window, kMaxWidth);
  if (window > 0)
    config.layer_windows.assign(static_cast<size_t>(config.num_layers), window);
}

void write_config(const ModelConfig& config, io::Json& json) {
  write_llama_sizes(config, json);
  json.set("sliding_window",
           config.layer_windows.empty() ? io::Json() : io::Json(config.layer_windows[0]));
}

}  // namespace

Family mistral_family() {
  Family family = llama_family();
  family.architecture = "MistralForCausalLM";
  family.read_config = &read_config;
  family.write_config = &write_config;
  family.gguf = {};
  return family;
}

}  // namespace shardtune::models
