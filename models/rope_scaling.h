// Scaling of the rotary embedding's frequencies: the types "linear" and "llama3" of config.json,
// and the divisors that GGUF stores instead of llama3's parameters.
#pragma once

#include <vector>

#include "models/model_config.h"

namespace shardtune::models {

/// rope_theta and the scaling from either spelling (top level, rope_scaling, rope_parameters).
/// Errors  UnsupportedError: another type, partial rotation; DataError: values out of range
void parse_rope(const io::JsonReader& json, ModelConfig& config);
/// The same from metadata under `prefix` ("llama.") and the tensor rope_freqs.weight.
void parse_gguf_rope(const io::GgufFile& file, const std::string& prefix, ModelConfig& config);
/// rope_theta and rope_parameters, as transformers 4 and 5 read them, and rope_scaling for 4.
/// Errors  UnsupportedError: divisors of a GGUF file that are not those of a known llama3 scaling
void write_rope(const ModelConfig& config, io::Json& json);

/// The keys of parse_gguf_rope(); a llama3 scaling is a tensor.
std::vector<io::GgufPair> gguf_rope_keys(const std::string& prefix, const ModelConfig& config);
/// What GGUF stores of a llama3 scaling, as rope_freqs.weight: [head_dim / 2], or empty without
/// one.
std::vector<float> gguf_rope_divisors(const ModelConfig& config);

/// Inverse frequencies [head_dim / 2] after scaling.
/// Source  transformers 5.23, modeling_rope_utils.py, on Llama 3.1's scaling
std::vector<float> rope_frequencies(const ModelConfig& config);

}  // namespace shardtune::models
