// GPT-2: layer norm with bias, learned positions, one linear for q, k and v, GELU MLP, tied head.
// Its linears are Conv1D modules, whose weights files hold as [in,out]; here they are [out,in] like
// all others (ModelSource turns them). Legend: T tokens, H hidden, F intermediate, A heads.
// Source  Radford et al. 2019, Language Models are Unsupervised Multitask Learners; transformers
//         5.23, models/gpt2
#include "autograd/matrix_ops.h"
#include "models/decoder.h"
#include "models/family.h"

namespace shardtune::models {

namespace {

struct Norm {
  ParameterId weight = kNoParameter;
  ParameterId bias = kNoParameter;
};
struct Gpt2Layer {
  Norm ln_1, ln_2;
  const BaseLinear *c_attn = nullptr, *attn_c_proj = nullptr;
  const BaseLinear *c_fc = nullptr, *mlp_c_proj = nullptr;
};

class Gpt2 : public Decoder {
 public:
  Gpt2(const ModelSource& source, ParameterStore& store, const LoadOptions& options)
      : Decoder(source, store, options) {
    load(source, options,
         {"transformer.wte.weight", "transformer.h", "transformer.ln_f", "lm_head.weight"});
  }

  kernels::AttentionShape attention_shape(int layer) const override {
    kernels::AttentionShape shape = Decoder::attention_shape(layer);
    if (!config_.scales_attention)
      shape.scale = 1.0f;
    if (config_.scales_attention_by_layer)
      shape.scale /= static_cast<float>(layer + 1);
    return shape;
  }

 private:
  void declare_positions(Loader& loader) override {
    positions_ = loader.table("transformer.wpe.weight", config_.max_position_embeddings);
  }
  void declare_layer(Loader& loader, UnitId unit, const std::string& layer_name) override;
  void declare_final_norm(Loader& loader, UnitId unit, const std::string& name) override {
    final_norm_ = declare_norm(loader, unit, name);
  }
  Norm declare_norm(Loader& loader, UnitId unit, const std::string& name) const {
    return {loader.vector(unit, name + ".weight", config_.hidden_size),
            loader.vector(unit, name + ".bias", config_.hidden_size)};
  }

  Variable run_layer(Tape& tape, const Pass& pass, int index, const Variable& input) const override;
  Variable final_norm(Tape& tape, const Variable& x) const override {
    return norm(tape, x, final_norm_);
  }
  Variable norm(Tape& tape, const Variable& x, const Norm& parameters) const {
    return autograd::layer_norm(tape, x,
                                {parameters.weight, parameters.bias,
                                 static_cast<float>(config_.norm_eps), compute_dtype()});
  }
  Variable attention_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const;
  Variable mlp_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const;

  std::vector<Gpt2Layer> layers_;
  Norm final_norm_;
};

void Gpt2::declare_layer(Loader& loader, UnitId unit, const std::string& layer_name) {
  const std::string prefix = layer_name + ".";
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const auto linear = [&](const char* name, int64_t out, int64_t in) {
    return loader.linear(unit, prefix + name, {out, in}, Loader::Bias::kYes);
  };
  Gpt2Layer layer;
  layer.ln_1 = declare_norm(loader, unit, prefix + "ln_1");
  layer.c_attn = linear("attn.c_attn", 3 * hidden, hidden);
  layer.attn_c_proj = linear("attn.c_proj", hidden, hidden);
  layer.ln_2 = declare_norm(loader, unit, prefix + "ln_2");
  layer.c_fc = linear("mlp.c_fc", inner, hidden);
  layer.mlp_c_proj = linear("mlp.c_proj", hidden, inner);
  layers_.push_back(layer);
}

Variable Gpt2::run_layer(Tape& tape, const Pass& pass, int index, const Variable& input) const {
  const Variable middle = autograd::add(tape, input, attention_branch(tape, pass, index, input));
  return autograd::add(tape, middle, mlp_branch(tape, pass, index, middle));
}

Variable Gpt2::attention_branch(Tape& tape, const Pass& pass, int index,
                                const Variable& input) const {
  const Gpt2Layer& layer = layers_[static_cast<size_t>(index)];
  const Variable fused = apply(tape, pass, index, *layer.c_attn, norm(tape, input, layer.ln_1));
  AttentionInput parts;
  const int64_t hidden = config_.hidden_size;
  parts.q = autograd::slice_columns(tape, fused, 0, hidden);
  parts.k = autograd::slice_columns(tape, fused, hidden, 2 * hidden);
  parts.v = autograd::slice_columns(tape, fused, 2 * hidden, 3 * hidden);
  parts.o_proj = layer.attn_c_proj;
  parts.qkv_proj = layer.c_attn;
  const Variable attended = attend(tape, pass, index, std::move(parts));
  const Variable output = apply(tape, pass, index, *layer.attn_c_proj, attended);
  return finish_branch(tape, pass, index, {Branch::kAttention, input, output});
}

Variable Gpt2::mlp_branch(Tape& tape, const Pass& pass, int index, const Variable& input) const {
  const Gpt2Layer& layer = layers_[static_cast<size_t>(index)];
  const Variable inner = apply(tape, pass, index, *layer.c_fc, norm(tape, input, layer.ln_2));
  const Variable active = autograd::activate(tape, kernels::Activation::kGeluTanh, inner);
  const Variable output = apply(tape, pass, index, *layer.mlp_c_proj, active);
  return finish_branch(tape, pass, index, {Branch::kMlp, input, output});
}

std::unique_ptr<Model> make_gpt2(const ModelSource& source, ParameterStore& store,
                                 const LoadOptions& options) {
  return std::make_unique<Gpt2>(source, store, options);
}

void read_config(const io::JsonReader& json, ModelConfig& config) {
  const std::string act = json.string_or("activation_function", "gelu_new");
  if (act != "gelu_new" && act != "gelu_pytorch_tanh")
    refuse_model(json.name(), "activation_function '" + act + "' (known: gelu_new)");
  if (json.boolean_or("add_cross_attention", false))
    refuse_model(json.name(), "add_cross_attention");
  const auto size = [&](const char* key, int64_t otherwise, int64_t max) {
    return bounded_integer(json, key, json.integer_or(key, otherwise), max);
  };
  config.hidden_size = size("n_embd", 768, kMaxWidth);
  config.intermediate_size = size("n_inner", 4 * config.hidden_size, kMaxWidth);
  config.num_layers = size("n_layer", 12, 10000);
  config.num_heads = size("n_head", 12, 65536);
  config.num_kv_heads = config.num_heads;
  config.vocab_size = size("vocab_size", 50257, int64_t{1} << 28);
  config.max_position_embeddings = size("n_positions", 1024, kMaxWidth);
  if (config.hidden_size % config.num_heads != 0) {
    throw DataError(json.name() + ": n_embd: expected a multiple of n_head (" +
                    std::to_string(config.num_heads) + "), found " +
                    std::to_string(config.hidden_size) +
                    ". Use the file as its author published it.");
  }
  config.head_dim = config.hidden_size / config.num_heads;
  config.norm_eps = json.number_or("layer_norm_epsilon", 1e-5);
  config.scales_attention = json.boolean_or("scale_attn_weights", true);
  config.scales_attention_by_layer = json.boolean_or("scale_attn_by_inverse_layer_idx", false);
  config.tie_word_embeddings = json.boolean_or("tie_word_embeddings", true);
}

void write_config(const ModelConfig& config, io::Json& json) {
  json.set("n_embd", config.hidden_size);
  json.set("n_inner", config.intermediate_size);
  json.set("n_layer", config.num_layers);
  json.set("n_head", config.num_heads);
  json.set("n_positions", config.max_position_embeddings);
  json.set("vocab_size", config.vocab_size);
  json.set("layer_norm_epsilon", config.norm_eps);
  json.set("activation_function", "gelu_new");
  json.set("scale_attn_weights", config.scales_attention);
  json.set("scale_attn_by_inverse_layer_idx", config.scales_attention_by_layer);
}

void read_gguf(const io::GgufFile& file, ModelConfig& config) {
  const auto size = [&](const char* key) {
    return bounded_integer(file, std::string("gpt2.") + key);
  };
  config.hidden_size = size("embedding_length");
  config.intermediate_size = size("feed_forward_length");
  config.num_layers = size("block_count");
  config.num_heads = size("attention.head_count");
  config.num_kv_heads = config.num_heads;
  config.max_position_embeddings = size("context_length");
  if (config.hidden_size % config.num_heads != 0) {
    throw DataError(file.path() + ": gpt2.embedding_length " + std::to_string(config.hidden_size) +
                    " is not a multiple of gpt2.attention.head_count " +
                    std::to_string(config.num_heads) + ".");
  }
  config.head_dim = config.hidden_size / config.num_heads;
  config.norm_eps = file.number("gpt2.attention.layer_norm_epsilon");
}

std::vector<io::GgufPair> write_gguf(const ModelConfig& config, const std::string& prefix) {
  if (!config.scales_attention || config.scales_attention_by_layer)
    throw UnsupportedError(
        "GGUF: llama.cpp knows gpt2 with scale_attn_weights and without "
        "scale_attn_by_inverse_layer_idx alone. Use --to hf.");
  std::vector<io::GgufPair> keys = gguf_sizes(config, prefix);
  keys.push_back(io::gguf_float32(prefix + "attention.layer_norm_epsilon",
                                  static_cast<float>(config.norm_eps)));
  return keys;
}

constexpr TensorName kTensors[] = {{"transformer.wte.weight", "token_embd.weight"},
                                   {"transformer.wpe.weight", "position_embd.weight"},
                                   {"transformer.ln_f.weight", "output_norm.weight"},
                                   {"transformer.ln_f.bias", "output_norm.bias"},
                                   {"lm_head.weight", "output.weight"}};
constexpr TensorName kLayerTensors[] = {{"ln_1", "attn_norm"},          {"attn.c_attn", "attn_qkv"},
                                        {"attn.c_proj", "attn_output"}, {"ln_2", "ffn_norm"},
                                        {"mlp.c_fc", "ffn_up"},         {"mlp.c_proj", "ffn_down"}};
constexpr std::string_view kConv1d[] = {"attn.c_attn.weight", "attn.c_proj.weight",
                                        "mlp.c_fc.weight", "mlp.c_proj.weight"};

}  // namespace

Family gpt2_family() {
  Family family;
  family.architecture = "GPT2LMHeadModel";
  family.prefix = "transformer.";
  family.layers = "transformer.h.";
  family.conv1d = kConv1d;
  family.make = &make_gpt2;
  family.read_config = &read_config;
  family.write_config = &write_config;
  family.gguf.architecture = "gpt2";
  family.gguf.read_config = &read_gguf;
  family.gguf.write_config = &write_gguf;
  family.gguf.tensors = kTensors;
  family.gguf.layer_tensors = kLayerTensors;
  return family;
}

}  // namespace shardtune::models
