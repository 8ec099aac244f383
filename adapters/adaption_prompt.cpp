// LLaMA-Adapter: in each of the last layers a trained prompt [len, H] goes through the layer's
// k_proj and v_proj; the rotated queries attend to it with a softmax of its own, never rotated, and
// what comes out, times a gate that starts at zero, joins the attention's output before o_proj.
// Where q, k and v come from one linear (gpt2's c_attn) it joins behind the output projection, as
// PEFT has it there.
//
// Source  Zhang et al. 2023, LLaMA-Adapter, arXiv:2303.16199
#include <utility>

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
  std::string target_modules;  // "": as the model calls its attention

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
    is_fused_ = attention_linear(model, 0, "c_attn") != nullptr;
    if (!options.target_modules.empty() && options.target_modules != attention_name())
      throw ConfigError("adapter.target_modules: expected '" + attention_name() +
                        "', as this model calls its attention, found '" + options.target_modules +
                        "'.");
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
    const auto [k, v] = keys_and_values(tape, parts, rows, dtype);
    // The gate on the values is the gate on the shares.
    const Variable gate = autograd::reshape(tape, tape.parameter(tensors()[first + 1].id), {1, 1});
    const Variable column = autograd::reshape(tape, v, {v.numel(), 1});
    const Variable gated = autograd::cast(
        tape,
        autograd::reshape(tape, autograd::matmul(tape, column, gate, kernels::Transpose::kNo),
                          v.shape()),
        dtype);
    Variable seen =
        prompt_attention(tape, parts.q_rotated, k, gated, model().attention_shape(context.layer));
    if (!is_fused_)
      return autograd::add(tape, parts.output, seen);
    behind_projection_ = std::move(seen);
    return parts.output;
  }

  bool changes_branches() const override { return is_fused_; }
  Variable after_branch(Tape& tape, const models::BranchParts& parts,
                        const models::PassContext& context) override {
    if (parts.branch != models::Branch::kAttention || context.layer < first_layer_)
      return parts.output;
    const Variable seen = std::exchange(behind_projection_, {});
    return autograd::add(tape, parts.output, autograd::cast(tape, seen, parts.output.dtype()));
  }

  bool mergeable() const override { return false; }
  std::string why_not_mergeable() const override { return "what it adds depends on the tokens"; }
  void merge_rows(const BaseLinear&, int64_t, int64_t, const TensorView&) const override {}

  io::Json peft_config(const std::string& base_model) const override {
    return peft_config_json("ADAPTION_PROMPT", base_model,
                            {{"adapter_layers", options_.adapter_layers},
                             {"adapter_len", options_.adapter_len},
                             {"target_modules", attention_name()}});
  }

 private:
  std::string attention_name() const { return is_fused_ ? "attn" : "self_attn"; }

  /// Of the prompt's rows; the values in f32, as the gate is to come.
  std::pair<Variable, Variable> keys_and_values(Tape& tape, const models::AttentionParts& parts,
                                                const Variable& rows, DType dtype) const {
    if (!is_fused_)
      return {parts.k_proj->forward(tape, rows, dtype),
              parts.v_proj->forward(tape, rows, DType::kFloat32)};
    const Variable fused = parts.qkv_proj->forward(tape, rows, DType::kFloat32);
    const int64_t width = parts.qkv_proj->out_features() / 3;
    return {autograd::cast(tape, autograd::slice_columns(tape, fused, width, 2 * width), dtype),
            autograd::slice_columns(tape, fused, 2 * width, 3 * width)};
  }

  void declare_layer(int layer) {
    const BaseLinear* k_proj = attention_linear(model(), layer, is_fused_ ? "c_attn" : "k_proj");
    const BaseLinear* o_proj = attention_linear(model(), layer, "o_proj");
    if (k_proj == nullptr ||
        (!is_fused_ && (o_proj == nullptr || o_proj->bias() != kNoParameter))) {
      throw UnsupportedError(
          "adapter.method: 'adaption_prompt' needs attention with c_attn, or with k_proj, v_proj "
          "and an o_proj without bias, which layer " +
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
  bool is_fused_ = false;
  Variable behind_projection_;  // of the layer at work, from hook (4) to hook (5)
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
  const std::string named = reader.choice("target_modules", "self_attn", {"self_attn", "attn"});
  options.target_modules = reader.has("target_modules") ? named : "";
  return std::make_unique<MethodOptions<AdaptionPrompt, AdaptionPromptOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
