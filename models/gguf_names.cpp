#include "models/gguf_names.h"

#include "core/error.h"
#include "models/family.h"

namespace shardtune::models {

namespace {
/// A family without a GGUF form of its own has another's: mistral is written as llama.
Family gguf_family(const ModelConfig& config) {
  Family family = families().at(config.model_type);
  if (family.gguf.architecture.empty())
    family.gguf = llama_family().gguf;
  return family;
}
}  // namespace

std::string gguf_architecture(const ModelConfig& config) {
  const GgufFamily gguf = gguf_family(config).gguf;
  const bool has_divisors =
      config.rope_scaling.type == RopeType::kLlama3 || !config.rope_divisors.empty();
  if (has_divisors && !gguf.has_rope_divisors)
    throw UnsupportedError("GGUF: llama.cpp has no rope scaling 'llama3' for the architecture '" +
                           std::string(gguf.architecture) + "'. Use --to hf.");
  return std::string(gguf.architecture);
}

std::vector<io::GgufPair> gguf_keys(const ModelConfig& config) {
  const std::string architecture = gguf_architecture(config);
  std::vector<io::GgufPair> keys = {io::gguf_string("general.architecture", architecture),
                                    io::gguf_string("general.type", "model")};
  const auto own = gguf_family(config).gguf.write_config(config, architecture + ".");
  keys.insert(keys.end(), own.begin(), own.end());
  return keys;
}

io::GgufPair gguf_count(const std::string& key, int64_t value) {
  return io::gguf_uint32(key, static_cast<uint32_t>(value));
}

std::vector<io::GgufPair> gguf_sizes(const ModelConfig& config, const std::string& prefix) {
  return {gguf_count(prefix + "block_count", config.num_layers),
          gguf_count(prefix + "context_length", config.max_position_embeddings),
          gguf_count(prefix + "embedding_length", config.hidden_size),
          gguf_count(prefix + "feed_forward_length", config.intermediate_size),
          gguf_count(prefix + "attention.head_count", config.num_heads),
          gguf_count(prefix + "vocab_size", config.vocab_size)};
}

std::string gguf_tensor_name(const ModelConfig& config, const std::string& name) {
  const Family family = gguf_family(config);
  for (const TensorName& tensor : family.gguf.tensors) {
    if (tensor.hugging_face == name)
      return std::string(tensor.gguf);
  }
  if (!name.starts_with(family.layers))
    return "";
  const size_t index_end = name.find('.', family.layers.size());
  const size_t suffix = name.rfind('.');
  if (index_end == std::string::npos || suffix <= index_end)
    return "";
  const std::string part = name.substr(index_end + 1, suffix - index_end - 1);
  for (const TensorName& tensor : family.gguf.layer_tensors) {
    if (tensor.hugging_face == part)
      return "blk." + name.substr(family.layers.size(), index_end - family.layers.size()) + "." +
             std::string(tensor.gguf) + name.substr(suffix);
  }
  return "";
}

bool has_interleaved_rows(const ModelConfig& config, const std::string& name) {
  return gguf_family(config).gguf.permutes_qk &&
         (name.find(".self_attn.q_proj.") != std::string::npos ||
          name.find(".self_attn.k_proj.") != std::string::npos);
}

}  // namespace shardtune::models
