// Prefix tuning: each layer attends to n trained rows of keys and values that stand before every
// sample, never rotated; real tokens take positions from n on. With grouped heads the rows are as
// wide as the layer's keys, as PEFT writes them. With prefix_projection the rows come from an MLP,
// embedding [n, D] -> linear -> tanh -> linear, whose first half is computed once per pass in a
// unit of its own; what is saved are the rows. Without, this is P-tuning v2 too. Source  Li and
// Liang 2021, Prefix-Tuning, arXiv:2101.00190; Liu et al. 2022, P-Tuning v2,
//         arXiv:2110.07602
#include <algorithm>
#include <cmath>
#include <optional>

#include "adapters/adapter_base.h"
#include "adapters/methods.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Transpose;

struct PrefixOptions {
  int64_t num_virtual_tokens = 0;
  bool starts_at_zero = false;      // init_weights: zero
  bool projects = false;            // prefix_projection
  int64_t encoder_hidden_size = 0;  // 0: as wide as the keys
  bool is_saved = false;            // then the rows themselves are there

  std::vector<std::pair<std::string, std::string>> keys() const {
    std::vector<std::pair<std::string, std::string>> keys = {
        {"init_weights", starts_at_zero ? "zero" : "normal"},
        {"num_virtual_tokens", std::to_string(num_virtual_tokens)},
        {"prefix_projection", projects ? "true" : "false"}};
    if (encoder_hidden_size > 0)
      keys.emplace_back("encoder_hidden_size", std::to_string(encoder_hidden_size));
    return keys;
  }
  FrontTokens front_tokens() const { return {num_virtual_tokens, 0}; }
};

/// Tensors of the projection before those of the layers.
enum Encoder : size_t { kEmbedding, kWeight, kBias, kEncoderTensors };

class PrefixTuning : public AdapterBase {
 public:
  static constexpr std::string_view kName = "prefix_tuning";

  PrefixTuning(const PrefixOptions& options, models::Model& model)
      : AdapterBase(model),
        options_(options),
        width_(model.config().kv_features()),
        hidden_(options.encoder_hidden_size > 0 ? options.encoder_hidden_size : width_) {
    if (has_encoder())
      declare_encoder();
    for (int layer = 0; layer < model.config().num_layers; ++layer)
      declare_layer(layer);
  }

  std::string_view method() const override { return kName; }
  std::optional<UnitId> front_unit() const override { return encoder_unit_; }
  int64_t num_positions() const override { return options_.num_virtual_tokens; }

  /// tanh(W e + b) [n, hidden].
  Variable before_layers(Tape& tape, const models::PassContext&) override {
    const auto parameter = [&](size_t i) { return tape.parameter(tensors()[i].id); };
    const Variable x =
        autograd::matmul(tape, parameter(kEmbedding), parameter(kWeight), Transpose::kYes);
    return autograd::activate(tape, kernels::Activation::kTanh,
                              autograd::add_row(tape, x, parameter(kBias)));
  }

  models::PrefixKv prefix_kv(Tape& tape, const models::PassContext& context) override {
    const size_t first = first_of_layer(static_cast<size_t>(context.layer));
    const Variable left = tape.parameter(tensors()[first].id);
    const Variable right = tape.parameter(tensors()[first + 1].id);
    if (!has_encoder())
      return {left, right};
    const Variable rows = autograd::add_row(
        tape, autograd::matmul(tape, context.shared, left, Transpose::kYes), right);
    return {autograd::slice_columns(tape, rows, 0, width_),
            autograd::slice_columns(tape, rows, width_, 2 * width_)};
  }

  std::vector<SavedTensor> saved_tensors() const override;

  bool mergeable() const override { return false; }
  std::string why_not_mergeable() const override { return "what it adds depends on the tokens"; }
  void merge_rows(const models::BaseLinear&, int64_t, int64_t, const TensorView&) const override {}

  io::Json peft_config(const std::string& base_model) const override {
    const models::ModelConfig& config = model().config();
    return peft_config_json(
        "PREFIX_TUNING", base_model,
        {{"encoder_hidden_size", hidden_},
         {"init_weights", options_.starts_at_zero ? io::Json("zero") : io::Json()},
         {"modules_to_save", nullptr},
         {"num_attention_heads", config.num_kv_heads},
         {"num_layers", config.num_layers},
         {"num_transformer_submodules", 1},
         {"num_virtual_tokens", options_.num_virtual_tokens},
         {"prefix_projection", options_.projects},
         {"token_dim", width_}});
  }

 private:
  bool has_encoder() const { return options_.projects && !options_.is_saved; }
  size_t first_of_layer(size_t layer) const {
    return (has_encoder() ? size_t{kEncoderTensors} : 0) + 2 * layer;
  }
  void declare_part(UnitId unit, const std::string& name, Shape shape, Initializer initial) {
    declare({unit, "prompt_encoder." + name, shape, std::move(initial), Reads::kNothing, ""});
  }
  void declare_encoder();
  void declare_layer(int layer);

  PrefixOptions options_;
  int64_t width_;   // of a layer's keys
  int64_t hidden_;  // of the projection
  std::optional<UnitId> encoder_unit_;
};

void PrefixTuning::declare_encoder() {
  encoder_unit_ = model().add_front_unit("prompt_encoder");
  declare_part(*encoder_unit_, "embedding.weight", {options_.num_virtual_tokens, width_},
               normal_values(1.0f));
  declare_part(*encoder_unit_, "transform.0.weight", {hidden_, width_}, kaiming_values(width_));
  declare_part(*encoder_unit_, "transform.0.bias", {hidden_}, kaiming_values(width_));
}

// Of the projection's second linear each layer has the rows that yield its keys and values.
void PrefixTuning::declare_layer(int layer) {
  const UnitId unit = model().layer_unit(layer);
  const std::string place = "." + std::to_string(layer);
  const Initializer zeros = constant_values(0.0f);
  if (has_encoder()) {
    const Initializer initial = options_.starts_at_zero ? zeros : kaiming_values(hidden_);
    declare_part(unit, "transform.2.weight" + place, {2 * width_, hidden_}, initial);
    declare_part(unit, "transform.2.bias" + place, {2 * width_}, initial);
    return;
  }
  const Initializer initial = options_.starts_at_zero ? zeros : normal_values(1.0f);
  for (const char* part : {".key", ".value"})
    declare_part(unit, "embedding" + place + part, {options_.num_virtual_tokens, width_}, initial);
}

/// Source `part` of n rows is a column of parts: out[row, part, :] = source[row, :].
void place_columns(const std::vector<float>& source, int64_t part, int64_t parts, int64_t width,
                   std::span<float> out) {
  for (size_t i = 0; i < source.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / width;
    const auto column = static_cast<int64_t>(i) % width;
    out[static_cast<size_t>((row * parts + part) * width + column)] = source[i];
  }
}

std::vector<float> read_columns(std::span<const float> saved, int64_t part, int64_t parts,
                                int64_t width) {
  std::vector<float> out(saved.size() / static_cast<size_t>(parts));
  for (size_t i = 0; i < out.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / width;
    const auto column = static_cast<int64_t>(i) % width;
    out[i] = saved[static_cast<size_t>((row * parts + part) * width + column)];
  }
  return out;
}

/// x [n,in] W^T + b, as the operations of a pass compute it.
Tensor linear(const TensorView& x, const std::vector<float>& weight,
              const std::vector<float>& bias) {
  const auto view = [](const std::vector<float>& values, Shape shape) {
    return TensorView(const_cast<float*>(values.data()), DType::kFloat32, shape);
  };
  const auto out = static_cast<int64_t>(bias.size());
  Tensor y(Shape{x.dim(0), out}, DType::kFloat32);
  kernels::gemm(x, view(weight, {out, x.dim(1)}), Transpose::kYes, y, kernels::Accumulate::kNo);
  kernels::add_bias(view(bias, {out}), y);
  return y;
}

// prompt_embeddings [n, 2 L width]: keys of layer 0, values of layer 0, keys of layer 1, ...
std::vector<SavedTensor> PrefixTuning::saved_tensors() const {
  SavedTensor saved;
  saved.name = "prompt_embeddings";
  saved.prefix = "";
  const int64_t n = options_.num_virtual_tokens;
  const int64_t layers = model().config().num_layers;
  const int64_t width = width_;
  saved.shape = Shape{n, 2 * layers * width};
  for (const AdapterTensor& tensor : tensors())
    saved.sources.push_back(tensor.id);
  if (!has_encoder()) {
    saved.compose = [parts = 2 * layers, width](const auto& sources, std::span<float> out) {
      for (int64_t part = 0; part < parts; ++part)
        place_columns(sources[static_cast<size_t>(part)], part, parts, width, out);
    };
    saved.decompose = [parts = 2 * layers, width](std::span<const float> values, size_t source,
                                                  std::span<float> out) {
      std::ranges::copy(read_columns(values, static_cast<int64_t>(source), parts, width),
                        out.begin());
    };
    return {saved};
  }
  saved.compose = [n, layers, width](const auto& sources, std::span<float> out) {
    const TensorView embedding(const_cast<float*>(sources[kEmbedding].data()), DType::kFloat32,
                               Shape{n, width});
    const Tensor linear_part = linear(embedding, sources[kWeight], sources[kBias]);
    const Tensor x(linear_part.shape(), DType::kFloat32);
    kernels::activate(kernels::Activation::kTanh, linear_part, x);
    for (int64_t layer = 0; layer < layers; ++layer) {
      const size_t first = kEncoderTensors + 2 * static_cast<size_t>(layer);
      const Tensor rows = linear(x, sources[first], sources[first + 1]);
      const auto values = rows.span<const float>();
      place_columns({values.begin(), values.end()}, layer, layers, 2 * width, out);
    }
  };
  return {saved};
}

}  // namespace

std::unique_ptr<AdapterOptions> read_prefix_tuning(const OptionReader& reader) {
  PrefixOptions options;
  options.is_saved = reader.source() == OptionReader::Source::kSaved;
  options.num_virtual_tokens = read_num_virtual_tokens(reader);
  options.projects = reader.boolean("prefix_projection", false);
  options.encoder_hidden_size = reader.integer("encoder_hidden_size", 0, {1, 1 << 20});
  if (!options.is_saved)
    options.starts_at_zero = reader.choice("init_weights", "normal", {"normal", "zero"}) == "zero";
  if (!options.is_saved && options.encoder_hidden_size > 0 && !options.projects)
    reader.error("encoder_hidden_size", "has no effect without 'prefix_projection: true'.");
  return std::make_unique<MethodOptions<PrefixTuning, PrefixOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
