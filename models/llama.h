// The llama family, and what families that differ from it in their configuration alone share.
#pragma once

#include <memory>

#include "models/family.h"

namespace shardtune::models {

/// Declares the model's units and loads its weights (collective).
std::unique_ptr<Model> make_llama(const ModelSource& source, ParameterStore& store,
                                  const LoadOptions& options);

/// Sizes, norm, activation and rotary embedding under llama's keys.
struct LlamaDefaults {
  int64_t num_kv_heads = 0;  // when the key is absent; 0: as many as heads
  int64_t max_position_embeddings = 2048;
};
void read_llama_sizes(const io::JsonReader& json, const LlamaDefaults& defaults,
                      ModelConfig& config);
void write_llama_sizes(const ModelConfig& config, io::Json& json);
void read_llama_gguf(const io::GgufFile& file, ModelConfig& config);
/// llama's tensors: names of the whole model and of a layer.
GgufFamily llama_gguf();

}  // namespace shardtune::models
