// P-tuning: the embeddings of n virtual tokens come from an encoder of trained embeddings [n, H]:
// an MLP of three linears with ReLU, or a bidirectional LSTM and an MLP of two. Only what the
// encoder yields is saved; it then stands for itself. Source  Liu et al. 2021, GPT Understands,
// Too, arXiv:2103.10385
#include <functional>

#include "adapters/lstm.h"
#include "adapters/methods.h"
#include "adapters/prompt_adapter.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Transpose;

struct PTuningOptions {
  int64_t num_virtual_tokens = 0;
  bool is_lstm = false;             // encoder_reparameterization_type
  int64_t encoder_hidden_size = 0;  // 0: the model's hidden size
  int64_t encoder_num_layers = 2;   // of the LSTM
  double encoder_dropout = 0.0;     // between layers of the LSTM
  bool is_saved = false;            // then the encoder's output is there alone

  std::vector<std::pair<std::string, std::string>> keys() const {
    std::vector<std::pair<std::string, std::string>> keys = {
        {"encoder_reparameterization_type", is_lstm ? "LSTM" : "MLP"},
        {"num_virtual_tokens", std::to_string(num_virtual_tokens)}};
    if (encoder_hidden_size > 0)
      keys.emplace_back("encoder_hidden_size", std::to_string(encoder_hidden_size));
    if (is_lstm) {
      keys.emplace_back("encoder_num_layers", std::to_string(encoder_num_layers));
      keys.emplace_back("encoder_dropout", io::Json(encoder_dropout).dump());
    }
    return keys;
  }
  FrontTokens front_tokens() const { return {num_virtual_tokens, num_virtual_tokens}; }
};

class PTuning : public PromptAdapter {
 public:
  static constexpr std::string_view kName = "p_tuning";

  PTuning(const PTuningOptions& options, models::Model& model)
      : PromptAdapter(options.num_virtual_tokens, model),
        options_(options),
        hidden_(options.encoder_hidden_size > 0 ? options.encoder_hidden_size : width()) {
    const Shape embedding{num_virtual_tokens(), width()};
    if (options.is_saved) {
      declare_prompt("prompt_embeddings", embedding, normal_values(1.0f));
      return;
    }
    declare_prompt("prompt_encoder.embedding.weight", embedding, normal_values(1.0f));
    if (options.is_lstm)
      declare_lstm();
    else
      declare_mlp({width(), hidden_, hidden_, width()});
  }

  std::string_view method() const override { return kName; }

  Variable virtual_tokens(Tape& tape, const models::PassContext& context) override {
    return encode(
        tape, [&](size_t i) { return parameter(tape, i); }, &context);
  }

  std::vector<SavedTensor> saved_tensors() const override {
    if (options_.is_saved)
      return AdapterBase::saved_tensors();
    SavedTensor saved;
    saved.name = "prompt_embeddings";
    saved.prefix = "";
    saved.shape = Shape{num_virtual_tokens(), width()};
    for (const AdapterTensor& tensor : tensors())
      saved.sources.push_back(tensor.id);
    saved.compose = [this](const auto& sources, std::span<float> out) {
      Tape tape(store(), autograd::Recording::kOff);
      const Variable rows = encode(
          tape,
          [&](size_t i) {
            return Variable::constant_view(TensorView(const_cast<float*>(sources[i].data()),
                                                      DType::kFloat32, tensors()[i].shape));
          },
          nullptr);
      std::ranges::copy(rows.value().span<const float>(), out.begin());
    };
    return {saved};
  }

  io::Json peft_config(const std::string& base_model) const override {
    auto own = prompt_config();
    own.emplace_back("encoder_dropout", options_.encoder_dropout);
    own.emplace_back("encoder_hidden_size", hidden_);
    own.emplace_back("encoder_num_layers", options_.encoder_num_layers);
    own.emplace_back("encoder_reparameterization_type", options_.is_lstm ? "LSTM" : "MLP");
    return peft_config_json("P_TUNING", base_model, std::move(own));
  }

 private:
  using Values = std::function<Variable(size_t)>;  // of the i-th tensor

  /// Linears of these widths, at places 0, 2, 4 as torch counts the activations between them.
  void declare_mlp(const std::vector<int64_t>& widths) {
    for (size_t i = 0; i + 1 < widths.size(); ++i) {
      const std::string name = "prompt_encoder.mlp_head." + std::to_string(2 * i);
      const Initializer initial = kaiming_values(widths[i]);
      declare_prompt(name + ".weight", {widths[i + 1], widths[i]}, initial);
      declare_prompt(name + ".bias", {widths[i + 1]}, initial);
    }
  }

  void declare_lstm() {
    const Initializer initial = kaiming_values(hidden_);
    for (int64_t layer = 0; layer < options_.encoder_num_layers; ++layer) {
      const int64_t in = layer == 0 ? width() : 2 * hidden_;
      for (const char* direction : {"", "_reverse"}) {
        const std::string place = "_l" + std::to_string(layer) + direction;
        const std::string name = "prompt_encoder.lstm_head.";
        declare_prompt(name + "weight_ih" + place, {4 * hidden_, in}, initial);
        declare_prompt(name + "weight_hh" + place, {4 * hidden_, hidden_}, initial);
        declare_prompt(name + "bias_ih" + place, {4 * hidden_}, initial);
        declare_prompt(name + "bias_hh" + place, {4 * hidden_}, initial);
      }
    }
    declare_mlp({2 * hidden_, 2 * hidden_, width()});
  }

  /// [n, H]. `context` of a pass, for dropout in training.
  Variable encode(Tape& tape, const Values& values, const models::PassContext* context) const {
    Variable x = values(0);
    if (options_.is_saved)
      return x;
    size_t next = 1;
    for (int64_t layer = 0; options_.is_lstm && layer < options_.encoder_num_layers; ++layer) {
      std::vector<LstmWeights> directions;
      for (int i = 0; i < 2; ++i, next += 4)
        directions.push_back({values(next), values(next + 1), values(next + 2), values(next + 3)});
      if (layer > 0)
        x = drop(tape, x, layer, context);
      x = bidirectional_lstm(tape, x, directions[0], directions[1]);
    }
    for (; next < tensors().size(); next += 2) {
      x = autograd::add_row(tape, autograd::matmul(tape, x, values(next), Transpose::kYes),
                            values(next + 1));
      if (next + 2 < tensors().size())
        x = autograd::activate(tape, kernels::Activation::kRelu, x);
    }
    return x;
  }

  /// One mask for all micro-batches of a step.
  Variable drop(Tape& tape, const Variable& x, int64_t layer,
                const models::PassContext* context) const {
    if (context == nullptr || context->mode != models::Mode::kTraining ||
        options_.encoder_dropout <= 0.0)
      return x;
    auto tokens = std::make_shared<autograd::DropoutTokens>();
    for (int32_t i = 0; i < static_cast<int32_t>(num_virtual_tokens()); ++i)
      tokens->index_in_sample.push_back(i);
    tokens->sample_of_token.assign(tokens->index_in_sample.size(), 0);
    const uint64_t key =
        mix_key(mix_key(context->seed, "prompt_encoder"),
                {static_cast<uint64_t>(context->step), static_cast<uint64_t>(layer)});
    return autograd::dropout(tape, x, static_cast<float>(options_.encoder_dropout), key,
                             std::move(tokens));
  }

  PTuningOptions options_;
  int64_t hidden_;
};

}  // namespace

std::unique_ptr<AdapterOptions> read_p_tuning(const OptionReader& reader) {
  PTuningOptions options;
  options.is_saved = reader.source() == OptionReader::Source::kSaved;
  options.num_virtual_tokens = read_num_virtual_tokens(reader);
  options.is_lstm =
      reader.choice("encoder_reparameterization_type", "MLP", {"MLP", "LSTM"}) == "LSTM";
  options.encoder_hidden_size = reader.integer("encoder_hidden_size", 0, {1, 1 << 20});
  options.encoder_num_layers = reader.integer("encoder_num_layers", 2, {1, 64});
  options.encoder_dropout =
      reader.number("encoder_dropout", 0.0, {.min = 0.0, .max = 1.0, .max_exclusive = true});
  if (!options.is_saved && !options.is_lstm) {
    for (const char* key : {"encoder_num_layers", "encoder_dropout"}) {
      if (reader.has(key))
        reader.error(key, "has no effect without 'encoder_reparameterization_type: LSTM'.");
    }
  }
  return std::make_unique<MethodOptions<PTuning, PTuningOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
