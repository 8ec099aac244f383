// The llama family: RMS norm, rotary embedding, grouped K/V heads, gated SiLU MLP, optional biases,
// tied or untied head. SmolLM2, TinyLlama and Llama 2 and 3 are of it; mistral and qwen2 differ in
// their configuration alone. Legend: T tokens, H hidden, F intermediate, A heads, K key/value
// heads, D head size.
#include "models/llama.h"

#include "models/decoder.h"
#include "models/rope_scaling.h"

namespace shardtune::models {

namespace {

struct LlamaLayer {
  ParameterId input_norm = kNoParameter;
  ParameterId post_attention_norm = kNoParameter;
  const BaseLinear *q = nullptr, *k = nullptr, *v = nullptr, *o = nullptr;
  const BaseLinear *gate = nullptr, *up = nullptr, *down = nullptr;
};

class Llama : public Decoder {
 public:
  Llama(const ModelSource& source, ParameterStore& store, const LoadOptions& options)
      : Decoder(source, store, options) {
    inverse_frequencies_ = rope_frequencies(config_);
    load(source, options,
         {"model.embed_tokens.weight", "model.layers", "model.norm", "lm_head.weight"});
  }

 private:
  void declare_layer(Loader& loader, UnitId unit, const std::string& layer_name) override;
  void declare_final_norm(Loader& loader, UnitId unit, const std::string& name) override {
    final_norm_ = loader.vector(unit, name + ".weight", config_.hidden_size);
  }

  Variable run_layer(Tape& tape, const Pass& pass, int index, const Variable& input) const override;
  Variable final_norm(Tape& tape, const Variable& x) const override {
    return norm(tape, x, final_norm_);
  }
  Variable norm(Tape& tape, const Variable& x, ParameterId weight) const {
    return autograd::rms_norm(tape, x,
                              {weight, static_cast<float>(config_.norm_eps), compute_dtype()});
  }
  Variable attention_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const;
  Variable mlp_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const;

  std::vector<LlamaLayer> layers_;
  ParameterId final_norm_ = kNoParameter;
};

void Llama::declare_layer(Loader& loader, UnitId unit, const std::string& layer_name) {
  const std::string prefix = layer_name + ".";
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const auto norm = [&](const char* name) {
    return loader.vector(unit, prefix + name + ".weight", hidden);
  };
  const auto linear = [&](const char* name, int64_t out, int64_t in, bool bias) {
    return loader.linear(unit, prefix + name, {out, in},
                         bias ? Loader::Bias::kYes : Loader::Bias::kNo);
  };
  LlamaLayer layer;
  layer.input_norm = norm("input_layernorm");
  layer.q = linear("self_attn.q_proj", config_.q_features(), hidden, config_.qkv_bias);
  layer.k = linear("self_attn.k_proj", config_.kv_features(), hidden, config_.qkv_bias);
  layer.v = linear("self_attn.v_proj", config_.kv_features(), hidden, config_.qkv_bias);
  layer.o = linear("self_attn.o_proj", hidden, config_.q_features(), config_.output_bias);
  layer.post_attention_norm = norm("post_attention_layernorm");
  layer.gate = linear("mlp.gate_proj", inner, hidden, config_.mlp_bias);
  layer.up = linear("mlp.up_proj", inner, hidden, config_.mlp_bias);
  layer.down = linear("mlp.down_proj", hidden, inner, config_.mlp_bias);
  layers_.push_back(layer);
}

Variable Llama::run_layer(Tape& tape, const Pass& pass, int index, const Variable& input) const {
  const Variable middle = autograd::add(tape, input, attention_branch(tape, pass, index, input));
  return autograd::add(tape, middle, mlp_branch(tape, pass, index, middle));
}

Variable Llama::attention_branch(Tape& tape, const Pass& pass, int index,
                                 const Variable& input) const {
  const LlamaLayer& layer = layers_[static_cast<size_t>(index)];
  const Variable normed = norm(tape, input, layer.input_norm);
  AttentionInput parts;
  parts.q = apply(tape, pass, index, *layer.q, normed);
  parts.k = apply(tape, pass, index, *layer.k, normed);
  parts.v = apply(tape, pass, index, *layer.v, normed);
  parts.k_proj = layer.k;
  parts.v_proj = layer.v;
  parts.o_proj = layer.o;
  const Variable attended = attend(tape, pass, index, std::move(parts));
  const Variable output = apply(tape, pass, index, *layer.o, attended);
  return finish_branch(tape, pass, index, {Branch::kAttention, input, output});
}

Variable Llama::mlp_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const {
  const LlamaLayer& layer = layers_[static_cast<size_t>(index)];
  const Variable normed = norm(tape, input, layer.post_attention_norm);
  const Variable gate = apply(tape, pass, index, *layer.gate, normed);
  const Variable up = apply(tape, pass, index, *layer.up, normed);
  const Variable output = apply(tape, pass, index, *layer.down, autograd::swiglu(tape, gate, up));
  return finish_branch(tape, pass, index, {Branch::kMlp, input, output});
}

}  // namespace

std::unique_ptr<Model> make_llama(const ModelSource& source, ParameterStore& store,
                                  const LoadOptions& options) {
  return std::make_unique<Llama>(source, store, options);
}

}  // namespace shardtune::models
