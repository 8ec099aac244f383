#include "models/model_config.h"

#include <algorithm>

#include "core/error.h"
#include "models/family.h"

namespace shardtune::models {

namespace {

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names)
    text += (text.empty() ? "" : ", ") + name;
  return text;
}

void parse_token_ids(const io::JsonReader& json, ModelConfig& config) {
  config.bos_token_id = json.integer_or("bos_token_id", -1);
  config.pad_token_id = json.integer_or("pad_token_id", -1);
  const io::Json* eos = json.object().find("eos_token_id");
  if (eos == nullptr)
    return;
  if (eos->is_integer())
    config.eos_token_ids.push_back(eos->as_integer());
  if (eos->is_integer() || eos->is_null())
    return;
  if (!eos->is_array())
    throw DataError(json.name() + ": eos_token_id: expected an integer or a list of them, found " +
                    std::string(eos->type_name()) + ".");
  for (const io::Json& id : eos->as_array()) {
    if (!id.is_integer())
      throw DataError(json.name() + ": eos_token_id: expected integers.");
    config.eos_token_ids.push_back(id.as_integer());
  }
}

void write_token_ids(const ModelConfig& config, io::Json& json) {
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
}

void check(const ModelConfig& config, const std::string& name) {
  const auto fail = [&](const std::string& message) { throw DataError(name + ": " + message); };
  if (config.num_heads % config.num_kv_heads != 0) {
    fail("num_attention_heads: expected a multiple of num_key_value_heads (" +
         std::to_string(config.num_kv_heads) + "), found " + std::to_string(config.num_heads) +
         ". Use the file as its author published it.");
  }
  if (config.head_dim % 2 != 0)
    fail("head_dim " + std::to_string(config.head_dim) + " is odd; rotary embedding needs pairs.");
  if (!(config.norm_eps > 0.0 && config.norm_eps < 1.0))
    fail("rms_norm_eps or layer_norm_epsilon: expected a number in (0, 1).");
}

}  // namespace

void refuse_model(const std::string& name, const std::string& what) {
  throw UnsupportedError(name + ": " + what + " is not supported yet, see docs/status.md.");
}

int64_t bounded_integer(const io::JsonReader& json, std::string_view key, int64_t value,
                        int64_t max) {
  if (value < 1 || value > max) {
    throw DataError(json.name() + ": " + std::string(key) + ": expected an integer in [1, " +
                    std::to_string(max) + "], found " + std::to_string(value) +
                    ". The configuration is damaged or of another kind of model.");
  }
  return value;
}

int64_t bounded_integer(const io::GgufFile& file, const std::string& key) {
  const int64_t value = file.integer(key);
  if (value < 1 || value > kMaxWidth) {
    throw DataError(file.path() + ": " + key + ": expected an integer in [1, 2^24], found " +
                    std::to_string(value) + ".");
  }
  return value;
}

bool is_conv1d(const ModelConfig& config, std::string_view tensor) {
  const auto& names = families().at(config.model_type).conv1d;
  return std::ranges::any_of(names, [&](std::string_view name) { return tensor.ends_with(name); });
}

ModelConfig parse_model_config(const io::Json& json_config, const std::string& name) {
  const io::JsonReader json(json_config, name);
  ModelConfig config;
  config.model_type = json.string("model_type");
  if (!families().contains(config.model_type))
    refuse_model(
        name, "model_type '" + config.model_type + "' (known: " + joined(families().names()) + ")");
  // What bitsandbytes quantised is read as its values (models/low_bit_tensors.h).
  const io::Json* quantization = json_config.find("quantization_config");
  const io::Json* method = quantization == nullptr ? nullptr : quantization->find("quant_method");
  if (json.has("quantization_config") &&
      !(method != nullptr && method->is_string() && method->as_string() == "bitsandbytes"))
    refuse_model(name, "a checkpoint that is already quantised (quantization_config)");
  config.tie_word_embeddings = json.boolean_or("tie_word_embeddings", false);
  families().at(config.model_type).read_config(json, config);
  parse_token_ids(json, config);
  check(config, name);
  return config;
}

ModelConfig parse_gguf_config(const io::GgufFile& file) {
  const std::string architecture = file.string("general.architecture");
  const std::string& name = file.path();
  ModelConfig config;
  std::vector<std::string> known;
  for (const std::string& family : families().names()) {
    const std::string_view own = families().at(family).gguf.architecture;
    if (own.empty())
      continue;
    known.emplace_back(own);
    if (own == architecture)
      config.model_type = family;
  }
  if (config.model_type.empty())
    refuse_model(name,
                 "general.architecture '" + architecture + "' (known: " + joined(known) + ")");
  families().at(config.model_type).gguf.read_config(file, config);
  const io::TensorInfo* embedding = file.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    throw DataError(name + ": token_embd.weight is missing or not a matrix.");
  config.vocab_size = embedding->shape[0];
  config.tie_word_embeddings = file.find("output.weight") == nullptr;
  config.bos_token_id = file.integer_or("tokenizer.ggml.bos_token_id", -1);
  config.pad_token_id = file.integer_or("tokenizer.ggml.padding_token_id", -1);
  if (const int64_t eos = file.integer_or("tokenizer.ggml.eos_token_id", -1); eos >= 0)
    config.eos_token_ids.push_back(eos);
  check(config, name);
  return config;
}

io::Json to_config_json(const ModelConfig& config, const std::string& dtype) {
  const Family& family = families().at(config.model_type);
  io::Json json = io::Json::object();
  json.set("architectures", io::Json(io::Json::Array{io::Json(std::string(family.architecture))}));
  json.set("model_type", config.model_type);
  json.set("dtype", dtype);
  family.write_config(config, json);
  json.set("tie_word_embeddings", config.tie_word_embeddings);
  write_token_ids(config, json);
  json.set("initializer_range", 0.02);
  json.set("use_cache", true);
  return json;
}

}  // namespace shardtune::models
