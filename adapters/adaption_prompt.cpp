// LLaMA-Adapter: in each of the last layers a trained prompt [len, H] goes through the layer's
// k_proj and v_proj; the rotated queries attend to it with a softmax of its own, never rotated, and
// what comes out, times a gate that starts at zero, joins the attention's output before o_proj.
// Source  Zhang et al. 2023, LLaMA-Adapter, arXiv:2303.16199
#include "adapters/adapter_base.h"
#include "adapters/methods.h"
#include "adapters/prompt_attention.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;

struct AdaptionPromptOptions {
  int64_t adapter_len = 0;
  int64_t adapter_layers = 0;

  std::vector<std::pair<std::string, std::string>> keys() const {
    return {{"adapter_layers", std::to_string(adapter_layers)},
            {"adapter_len", std::to_string(adapter_len)}};
  }
};

/// The linear of a layer's attention with this leaf name; null where q, k and v come from one.
const BaseLinear* attention_linear(models::Model& model, int layer, const std::string& leaf) {
  for (const BaseLinear* linear : model.linears()) {
    if (linear->unit() == model.layer_unit(layer) && linear->leaf_name() == leaf)
      return linear;
  }
  return nullptr;
}

class AdaptionPrompt : public AdapterBase {
 public:
  static constexpr std::string_view kName = "adaption_prompt";

  AdaptionPrompt(const AdaptionPromptOptions& options, models::Model& model)
      : AdapterBase(model), options_(options) {
    const int64_t layers = model.config().num_layers;
    if (options.adapter_layers > layers) {
      throw ConfigError("adapter.adapter_layers: expected at most " + std::to_string(layers) +
                        " (the model's layers), found " + std::to_string(options.adapter_layers) +
                        ".");
    }
    first_layer_ = layers - options.adapter_layers;
    for (int64_t layer = first_layer_; layer < layers; ++layer)
      declare_layer(static_cast<int>(layer));
  }

  std::string_view method() const override { return kName; }
  bool changes_attention() const override { return true; }

  Variable after_attention_scores(Tape& tape, const models::AttentionParts& parts,
                                  const models::PassContext& context) override {
    if (context.layer < first_layer_)
      return parts.output;
    const size_t first = 2 * static_cast<size_t>(context.layer - first_layer_);
    const AdapterTensor& prompt = tensors()[first];
    const DType dtype = parts.q_rotated.dtype();
    const Variable rows = autograd::cast(
        tape,
        autograd::reshape(tape, tape.parameter(prompt.id), {options_.adapter_len, prompt.shape[2]}),
        dtype);
    const Variable k = parts.k_proj->forward(tape, rows, dtype);
    const Variable v = parts.v_proj->forward(tape, rows, DType::kFloat32);
    // The gate on the values is the gate on the shares.
    const Variable gate = autograd::reshape(tape, tape.parameter(tensors()[first + 1].id), {1, 1});
    const Variable column = autograd::reshape(tape, v, {v.numel(), 1});
    const Variable gated = autograd::cast(
        tape,
        autograd::reshape(tape, autograd::matmul(tape, column, gate, kernels::Transpose::kNo),
                          v.shape()),
        dtype);
    return autograd::add(
        tape, parts.output,
        prompt_attention(tape, parts.q_rotated, k, gated, model().attention_shape(context.layer)));
  }

  bool mergeable() const override { return false; }
  std::string why_not_mergeable() const override { return "what it adds depends on the tokens"; }
  void merge_rows(const BaseLinear&, int64_t, int64_t, const TensorView&) const override {}

  io::Json peft_config(const std::string& base_model) const override {
    return peft_config_json("ADAPTION_PROMPT", base_model,
                            {{"adapter_layers", options_.adapter_layers},
                             {"adapter_len", options_.adapter_len},
                             {"target_modules", "self_attn"}});
  }

 private:
  void declare_layer(int layer) {
    const BaseLinear* k_proj = attention_linear(model(), layer, "k_proj");
    const BaseLinear* o_proj = attention_linear(model(), layer, "o_proj");
    if (k_proj == nullptr || o_proj == nullptr || o_proj->bias() != kNoParameter) {
      throw UnsupportedError(
          "adapter.method: 'adaption_prompt' needs attention with k_proj, v_proj and an o_proj "
          "without bias, which layer " +
          std::to_string(layer) + " of this model does not have. Use prefix_tuning.");
    }
    const std::string path = k_proj->path().substr(0, k_proj->path().rfind('.'));
    const int64_t hidden = model().config().hidden_size;
    const UnitId unit = model().layer_unit(layer);
    declare(
        {unit, path + ".adaption_prompt", {1, options_.adapter_len, hidden}, normal_values(1.0f)});
    declare({unit, path + ".adaption_gate", {1}, constant_values(0.0f)});
  }

  AdaptionPromptOptions options_;
  int64_t first_layer_ = 0;
};

}  // namespace

std::unique_ptr<AdapterOptions> read_adaption_prompt(const OptionReader& reader) {
  AdaptionPromptOptions options;
  for (const char* key : {"adapter_len", "adapter_layers"}) {
    if (!reader.has(key))
      reader.error(
          key, "expected a number, found none. Write for example '" + std::string(key) + ": 10'.");
  }
  options.adapter_len = reader.integer("adapter_len", 1, {1, 65536});
  options.adapter_layers = reader.integer("adapter_layers", 1, {1, 65536});
  reader.choice("target_modules", "self_attn", {"self_attn"});
  return std::make_unique<MethodOptions<AdaptionPrompt, AdaptionPromptOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
