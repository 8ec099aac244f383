#include "models/model_config.h"

#include "core/error.h"

namespace shardtune::models {

namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 24;

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
  throw UnsupportedError(name + ": " + what + " is not supported yet, see docs/status.md.");
}

int64_t bounded(const io::JsonReader& json, std::string_view key, int64_t value, int64_t max) {
  if (value < 1 || value > max) {
    throw DataError(json.name() + ": " + std::string(key) + ": expected an integer in [1, " +
                    std::to_string(max) + "], found " + std::to_string(value) +
                    ". The configuration is damaged or of another kind of model.");
  }
  return value;
}

// rope_theta and the scaling type from either spelling (FORMATS section 2.1).
void parse_rope(const io::JsonReader& json, ModelConfig& config) {
  config.rope_theta = json.number_or("rope_theta", 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const io::Json* rope = json.object().find(key);
    if (rope == nullptr || rope->is_null())
      continue;
    const io::JsonReader reader(*rope, json.name() + ": " + key);
    config.rope_theta = reader.number_or("rope_theta", config.rope_theta);
    const std::string type = reader.string_or("rope_type", reader.string_or("type", "default"));
    if (type != "default")
      refuse(json.name(), "rope type '" + type + "'");
    if (reader.number_or("partial_rotary_factor", 1.0) != 1.0)
      refuse(json.name(), "partial_rotary_factor other than 1");
  }
  if (!(config.rope_theta > 0.0)) {
    throw DataError(json.name() + ": rope_theta: expected a number above 0, found " +
                    std::to_string(config.rope_theta) + ".");
  }
}

void parse_token_ids(const io::JsonReader& json, ModelConfig& config) {
  config.bos_token_id = json.integer_or("bos_token_id", -1);
  config.pad_token_id = json.integer_or("pad_token_id", -1);
  const io::Json* eos = json.object().find("eos_token_id");
  if (eos == nullptr)
    return;
  if (eos->is_integer())
    config.eos_token_ids.push_back(eos->as_integer());
  if (!eos->is_array())
    return;
  for (const io::Json& id : eos->as_array()) {
    if (!id.is_integer())
      throw DataError(json.name() + ": eos_token_id: expected integers.");
    config.eos_token_ids.push_back(id.as_integer());
  }
}

void check(const ModelConfig& config, const std::string& name) {
  const auto fail = [&](const std::string& message) { throw DataError(name + ": " + message); };
  if (config.num_heads % config.num_kv_heads != 0) {
    fail("num_attention_heads " + std::to_string(config.num_heads) +
         " is not a multiple of num_key_value_heads " + std::to_string(config.num_kv_heads) + ".");
  }
  if (config.head_dim % 2 != 0)
    fail("head_dim " + std::to_string(config.head_dim) + " is odd; rotary embedding needs pairs.");
  if (!(config.rms_norm_eps > 0.0 && config.rms_norm_eps < 1.0))
    fail("rms_norm_eps: expected a number in (0, 1).");
}

}  // namespace

ModelConfig parse_model_config(const io::Json& json_config, const std::string& name) {
  const io::JsonReader json(json_config, name);
  ModelConfig config;
  config.model_type = json.string("model_type");
  if (config.model_type != "llama")
    refuse(name, "model_type '" + config.model_type + "' (known: llama)");
  if (json.has("quantization_config"))
    refuse(name, "a checkpoint that is already quantised (quantization_config)");
  if (const std::string act = json.string_or("hidden_act", "silu"); act != "silu")
    refuse(name, "hidden_act '" + act + "' (known: silu)");
  const auto size = [&](const char* key, int64_t max) {
    return bounded(json, key, json.integer(key), max);
  };
  config.hidden_size = size("hidden_size", kMaxWidth);
  config.intermediate_size = size("intermediate_size", kMaxWidth);
  config.num_layers = size("num_hidden_layers", 10000);
  config.num_heads = size("num_attention_heads", 65536);
  config.vocab_size = size("vocab_size", int64_t{1} << 28);
  config.num_kv_heads = bounded(json, "num_key_value_heads",
                                json.integer_or("num_key_value_heads", config.num_heads), 65536);
  if (!json.has("head_dim") && config.hidden_size % config.num_heads != 0) {
    throw DataError(name + ": hidden_size " + std::to_string(config.hidden_size) +
                    " is not a multiple of num_attention_heads " +
                    std::to_string(config.num_heads) + " and there is no head_dim.");
  }
  config.head_dim = bounded(
      json, "head_dim", json.integer_or("head_dim", config.hidden_size / config.num_heads), 65536);
  config.max_position_embeddings = bounded(
      json, "max_position_embeddings", json.integer_or("max_position_embeddings", 2048), kMaxWidth);
  config.rms_norm_eps = json.number_or("rms_norm_eps", 1e-6);
  config.tie_word_embeddings = json.boolean_or("tie_word_embeddings", false);
  config.attention_bias = json.boolean_or("attention_bias", false);
  config.mlp_bias = json.boolean_or("mlp_bias", false);
  parse_rope(json, config);
  parse_token_ids(json, config);
  check(config, name);
  return config;
}

ModelConfig parse_gguf_config(const io::GgufFile& file) {
  const std::string architecture = file.string("general.architecture");
  const std::string& name = file.path();
  if (architecture != "llama")
    refuse(name, "general.architecture '" + architecture + "' (known: llama)");
  const std::string prefix = architecture + ".";
  const auto size = [&](const std::string& key) {
    const int64_t value = file.integer(prefix + key);
    if (value < 1 || value > kMaxWidth) {
      throw DataError(name + ": " + prefix + key + ": expected an integer in [1, 2^24], found " +
                      std::to_string(value) + ".");
    }
    return value;
  };
  ModelConfig config;
  config.model_type = "llama";
  config.hidden_size = size("embedding_length");
  config.intermediate_size = size("feed_forward_length");
  config.num_layers = size("block_count");
  config.num_heads = size("attention.head_count");
  config.num_kv_heads = file.integer_or(prefix + "attention.head_count_kv", config.num_heads);
  config.max_position_embeddings = size("context_length");
  config.head_dim =
      file.integer_or(prefix + "attention.key_length", config.hidden_size / config.num_heads);
  config.rms_norm_eps = file.number(prefix + "attention.layer_norm_rms_epsilon");
  config.rope_theta = file.number_or(prefix + "rope.freq_base", 10000.0);
  if (config.num_kv_heads < 1 || config.head_dim < 1)
    throw DataError(name + ": head counts must be at least 1.");
  if (file.integer_or(prefix + "rope.dimension_count", config.head_dim) != config.head_dim)
    refuse(name, "a rope.dimension_count other than the head size");
  if (const std::string type = file.string_or(prefix + "rope.scaling.type", "none"); type != "none")
    refuse(name, "rope.scaling.type '" + type + "'");
  if (file.find("rope_freqs.weight") != nullptr)
    refuse(name, "rope_freqs.weight (llama3 rope scaling)");
  const io::TensorInfo* embedding = file.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    throw DataError(name + ": token_embd.weight is missing or not a matrix.");
  config.vocab_size = embedding->shape[0];
  config.tie_word_embeddings = file.find("output.weight") == nullptr;
  config.attention_bias = file.find("blk.0.attn_q.bias") != nullptr;
  config.mlp_bias = file.find("blk.0.ffn_gate.bias") != nullptr;
  config.bos_token_id = file.integer_or("tokenizer.ggml.bos_token_id", -1);
  config.pad_token_id = file.integer_or("tokenizer.ggml.padding_token_id", -1);
  if (const int64_t eos = file.integer_or("tokenizer.ggml.eos_token_id", -1); eos >= 0)
    config.eos_token_ids.push_back(eos);
  check(config, name);
  return config;
}

io::Json to_config_json(const ModelConfig& config, const std::string& dtype) {
  io::Json json = io::Json::object();
  json.set("architectures", io::Json(io::Json::Array{io::Json("LlamaForCausalLM")}));
  json.set("model_type", config.model_type);
  json.set("dtype", dtype);
  json.set("hidden_size", config.hidden_size);
  json.set("intermediate_size", config.intermediate_size);
  json.set("num_hidden_layers", config.num_layers);
  json.set("num_attention_heads", config.num_heads);
  json.set("num_key_value_heads", config.num_kv_heads);
  json.set("head_dim", config.head_dim);
  json.set("vocab_size", config.vocab_size);
  json.set("max_position_embeddings", config.max_position_embeddings);
  json.set("rms_norm_eps", config.rms_norm_eps);
  json.set("hidden_act", "silu");
  // Both spellings: rope_theta for transformers 4 and llama.cpp, rope_parameters for 5.
  json.set("rope_theta", config.rope_theta);
  io::Json rope = io::Json::object();
  rope.set("rope_type", "default");
  rope.set("rope_theta", config.rope_theta);
  json.set("rope_parameters", std::move(rope));
  json.set("attention_bias", config.attention_bias);
  json.set("mlp_bias", config.mlp_bias);
  json.set("tie_word_embeddings", config.tie_word_embeddings);
  if (config.bos_token_id >= 0)
    json.set("bos_token_id", config.bos_token_id);
  if (config.eos_token_ids.size() == 1)
    json.set("eos_token_id", config.eos_token_ids[0]);
  if (config.eos_token_ids.size() > 1) {
    io::Json ids = io::Json::array();
    for (const int64_t id : config.eos_token_ids)
      ids.push_back(id);
    json.set("eos_token_id", std::move(ids));
  }
  if (config.pad_token_id >= 0)
    json.set("pad_token_id", config.pad_token_id);
  json.set("initializer_range", 0.02);
  json.set("use_cache", true);
  return json;
}

}  // namespace shardtune::models
