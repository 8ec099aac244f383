// A family by model_type: how its configuration reads and writes, what its tensors are called in
// GGUF, and how it is built. One file and one line of registry.cpp each.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/registry.h"
#include "models/model.h"

namespace shardtune::models {

struct TensorName {
  std::string_view hugging_face;
  std::string_view gguf;
};

/// GGUF's side of a family; no architecture: GGUF has another family's name for it.
struct GgufFamily {
  std::string_view architecture;
  /// Keys under "architecture." into the configuration.
  void (*read_config)(const io::GgufFile& file, ModelConfig& config) = nullptr;
  /// The same keys of a configuration. UnsupportedError: what llama.cpp does not compute.
  std::vector<io::GgufPair> (*write_config)(const ModelConfig& config,
                                            const std::string& prefix) = nullptr;
  std::span<const TensorName> tensors;        // whole names
  std::span<const TensorName> layer_tensors;  // "self_attn.q_proj" -> "attn_q"
  bool permutes_qk = false;                   // rows of q and k stand in interleaved-pair order
  bool has_rope_divisors = false;             // rope_freqs.weight is read
};

struct Family {
  /// "MistralForCausalLM".
  std::string_view architecture;
  std::string_view prefix;  // of the names of all tensors but the head: "model."
  std::string_view layers;  // "model.layers."
  /// Ends of the names of weights that files hold as [in,out] (Conv1D modules).
  std::span<const std::string_view> conv1d;
  std::unique_ptr<Model> (*make)(const ModelSource&, ParameterStore&, const LoadOptions&) = nullptr;
  /// Everything but what all families spell alike.
  void (*read_config)(const io::JsonReader& json, ModelConfig& config) = nullptr;
  void (*write_config)(const ModelConfig& config, io::Json& json) = nullptr;
  GgufFamily gguf;
};

const Registry<Family>& families();

Family llama_family();
Family mistral_family();
Family qwen2_family();
Family gpt2_family();

/// For a family's reader: json's integer within [1, max], DataError otherwise.
int64_t bounded_integer(const io::JsonReader& json, std::string_view key, int64_t value,
                        int64_t max);
/// The same for GGUF metadata, up to 2^24.
int64_t bounded_integer(const io::GgufFile& file, const std::string& key);
/// For a family's writer of GGUF metadata: a size, and the sizes that all families have.
io::GgufPair gguf_count(const std::string& key, int64_t value);
std::vector<io::GgufPair> gguf_sizes(const ModelConfig& config, const std::string& prefix);
inline constexpr int64_t kMaxWidth = int64_t{1} << 24;
/// UnsupportedError: "name: what is not supported yet, see docs/status.md."
[[noreturn]] void refuse_model(const std::string& name, const std::string& what);

}  // namespace shardtune::models
