// The llama family: RMS norm, rotary embedding, grouped K/V heads, gated SiLU MLP, optional biases,
// tied or untied head. SmolLM2, TinyLlama, Llama-2 are of it.
#pragma once

#include <memory>
#include <vector>

#include "models/model.h"

namespace shardtune::models {

/// Declares the model's units and loads its weights (collective).
std::unique_ptr<Model> make_llama(const ModelSource& source, ParameterStore& store,
                                  const LoadOptions& options);

}  // namespace shardtune::models
