// Keys of config.json and GGUF metadata that llama, mistral and qwen2 spell alike.
#include "models/llama.h"
#include "models/rope_scaling.h"

namespace shardtune::models {

namespace {

constexpr TensorName kTensors[] = {{"model.embed_tokens.weight", "token_embd.weight"},
                                   {"model.norm.weight", "output_norm.weight"},
                                   {"lm_head.weight", "output.weight"}};
constexpr TensorName kLayerTensors[] = {
    {"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"},
    {"self_attn.q_proj", "attn_q"},   {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"},
    {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"}};

void read_llama_config(const io::JsonReader& json, ModelConfig& config) {
  read_llama_sizes(json, {}, config);
  config.qkv_bias = json.boolean_or("attention_bias", false);
  config.output_bias = config.qkv_bias;
  config.mlp_bias = json.boolean_or("mlp_bias", false);
}

void write_llama_config(const ModelConfig& config, io::Json& json) {
  write_llama_sizes(config, json);
  json.set("attention_bias", config.qkv_bias);
  json.set("mlp_bias", config.mlp_bias);
}

}  // namespace

void read_llama_sizes(const io::JsonReader& json, const LlamaDefaults& defaults,
                      ModelConfig& config) {
  if (const std::string act = json.string_or("hidden_act", "silu"); act != "silu")
    refuse_model(json.name(), "hidden_act '" + act + "' (known: silu)");
  const auto size = [&](const char* key, int64_t max) {
    return bounded_integer(json, key, json.integer(key), max);
  };
  config.hidden_size = size("hidden_size", kMaxWidth);
  config.intermediate_size = size("intermediate_size", kMaxWidth);
  config.num_layers = size("num_hidden_layers", 10000);
  config.num_heads = size("num_attention_heads", 65536);
  config.vocab_size = size("vocab_size", int64_t{1} << 28);
  const bool is_absent = json.object().find("num_key_value_heads") == nullptr;
  const int64_t otherwise =
      is_absent && defaults.num_kv_heads > 0 ? defaults.num_kv_heads : config.num_heads;
  config.num_kv_heads = bounded_integer(json, "num_key_value_heads",
                                        json.integer_or("num_key_value_heads", otherwise), 65536);
  if (!json.has("head_dim") && config.hidden_size % config.num_heads != 0) {
    throw DataError(json.name() + ": hidden_size: expected a multiple of num_attention_heads (" +
                    std::to_string(config.num_heads) + ") where there is no head_dim, found " +
                    std::to_string(config.hidden_size) +
                    ". Use the file as its author published it.");
  }
  config.head_dim = bounded_integer(
      json, "head_dim", json.integer_or("head_dim", config.hidden_size / config.num_heads), 65536);
  config.max_position_embeddings = bounded_integer(
      json, "max_position_embeddings",
      json.integer_or("max_position_embeddings", defaults.max_position_embeddings), kMaxWidth);
  config.norm_eps = json.number_or("rms_norm_eps", 1e-6);
  parse_rope(json, config);
}

void write_llama_sizes(const ModelConfig& config, io::Json& json) {
  json.set("hidden_size", config.hidden_size);
  json.set("intermediate_size", config.intermediate_size);
  json.set("num_hidden_layers", config.num_layers);
  json.set("num_attention_heads", config.num_heads);
  json.set("num_key_value_heads", config.num_kv_heads);
  json.set("head_dim", config.head_dim);
  json.set("vocab_size", config.vocab_size);
  json.set("max_position_embeddings", config.max_position_embeddings);
  json.set("rms_norm_eps", config.norm_eps);
  json.set("hidden_act", "silu");
  write_rope(config, json);
}

void read_llama_gguf(const io::GgufFile& file, ModelConfig& config) {
  const std::string& name = file.path();
  const std::string prefix = file.string("general.architecture") + ".";
  const auto size = [&](const char* key) { return bounded_integer(file, prefix + key); };
  config.hidden_size = size("embedding_length");
  config.intermediate_size = size("feed_forward_length");
  config.num_layers = size("block_count");
  config.num_heads = size("attention.head_count");
  config.num_kv_heads = file.integer_or(prefix + "attention.head_count_kv", config.num_heads);
  config.max_position_embeddings = size("context_length");
  config.head_dim =
      file.integer_or(prefix + "attention.key_length", config.hidden_size / config.num_heads);
  config.norm_eps = file.number(prefix + "attention.layer_norm_rms_epsilon");
  if (config.num_kv_heads < 1 || config.head_dim < 1)
    throw DataError(name + ": head counts must be at least 1.");
  if (file.integer_or(prefix + "attention.value_length", config.head_dim) != config.head_dim)
    refuse_model(name, "values of another size than keys");
  if (file.integer_or(prefix + "attention.sliding_window", 0) != 0)
    refuse_model(name, prefix + "attention.sliding_window (known in Hugging Face folders alone)");
  if (file.integer_or(prefix + "expert_count", 0) != 0)
    refuse_model(name, prefix + "expert_count (a mixture of experts)");
  parse_gguf_rope(file, prefix, config);
  config.qkv_bias = file.find("blk.0.attn_q.bias") != nullptr;
  config.output_bias = file.find("blk.0.attn_output.bias") != nullptr;
  config.mlp_bias = file.find("blk.0.ffn_gate.bias") != nullptr;
}

std::vector<io::GgufPair> write_llama_gguf(const ModelConfig& config, const std::string& prefix) {
  std::vector<io::GgufPair> keys = gguf_sizes(config, prefix);
  keys.insert(keys.end(), {gguf_count(prefix + "attention.head_count_kv", config.num_kv_heads),
                           gguf_count(prefix + "attention.key_length", config.head_dim),
                           gguf_count(prefix + "attention.value_length", config.head_dim),
                           io::gguf_float32(prefix + "attention.layer_norm_rms_epsilon",
                                            static_cast<float>(config.norm_eps))});
  const auto rope = gguf_rope_keys(prefix, config);
  keys.insert(keys.end(), rope.begin(), rope.end());
  return keys;
}

GgufFamily llama_gguf() {
  GgufFamily gguf;
  gguf.architecture = "llama";
  gguf.read_config = &read_llama_gguf;
  gguf.write_config = &write_llama_gguf;
  gguf.tensors = kTensors;
  gguf.layer_tensors = kLayerTensors;
  gguf.permutes_qk = true;
  gguf.has_rope_divisors = true;
  return gguf;
}

Family llama_family() {
  Family family;
  family.architecture = "LlamaForCausalLM";
  family.prefix = "model.";
  family.layers = "model.layers.";
  family.make = &make_llama;
  family.read_config = &read_llama_config;
  family.write_config = &write_llama_config;
  family.gguf = llama_gguf();
  return family;
}

}  // namespace shardtune::models
