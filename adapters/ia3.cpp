// (IA)3: learned vectors scale what linears give (y * l), or what feed-forward ones take (W (x *
// l)). Both start at 1. Source  Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning,
// arXiv:2205.05638
#include <algorithm>

#include "adapters/linear_adapter.h"
#include "adapters/methods.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;

struct Ia3Options {
  TargetModules targets;
  TargetModules feedforward;  // of the targets

  std::vector<std::pair<std::string, std::string>> keys() const {
    auto keys = target_keys(targets);
    keys.emplace_back("feedforward_modules", list_json(feedforward.names).dump());
    return keys;
  }
};

class Ia3 : public LinearAdapter {
 public:
  static constexpr std::string_view kName = "ia3";

  Ia3(const Ia3Options& options, models::Model& model)
      : LinearAdapter(model), options_(options), is_feedforward_(model.linears().size()) {
    std::vector<BaseLinear*> feedforward;
    if (!options.feedforward.names.empty())
      feedforward = match_target_modules(options.feedforward, model);
    for (const BaseLinear* linear : match_target_modules(options.targets, model)) {
      const bool takes = std::ranges::find(feedforward, linear) != feedforward.end();
      is_feedforward_[static_cast<size_t>(linear->index())] = takes;
      const Shape shape =
          takes ? Shape{1, linear->in_features()} : Shape{linear->out_features(), 1};
      declare(*linear, ".ia3_l", shape, constant_values(1.0f));
    }
    for (const BaseLinear* linear : feedforward) {
      if (!wraps(*linear))
        throw ConfigError("adapter.feedforward_modules: " + linear->path() +
                          " is not among target_modules. Name it there as well.");
    }
  }

  std::string_view method() const override { return kName; }

  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext&, const Next& next) override {
    const Variable l = tape.parameter(id_of(linear, 0));
    const Variable row = autograd::reshape(tape, l, Shape{l.numel()});
    return takes(linear) ? next(autograd::mul(tape, x, row)) : autograd::mul(tape, next(x), row);
  }

  void merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                  const TensorView& rows) const override {
    if (!wraps(linear))
      return;
    const auto l = store().value(id_of(linear, 0)).span<const float>();
    const int64_t width = linear.in_features();
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows.data<float>() + (i - begin) * width;
      for (int64_t j = 0; j < width; ++j)
        row[j] *= l[static_cast<size_t>(takes(linear) ? j : i)];
    }
  }
  void merge_bias(const BaseLinear& linear, std::span<float> bias) const override {
    if (!wraps(linear) || takes(linear))
      return;
    const auto l = store().value(id_of(linear, 0)).span<const float>();
    for (size_t i = 0; i < bias.size(); ++i)
      bias[i] *= l[i];
  }

  io::Json peft_config(const std::string& base_model) const override {
    std::vector<std::string> feedforward;
    for (const BaseLinear* linear : model().linears()) {
      if (wraps(*linear) && takes(*linear))
        feedforward.push_back(linear->path());
    }
    return with_trained_parts(
        peft_config_json("IA3", base_model,
                         {{"exclude_modules", nullptr},
                          {"fan_in_fan_out", wraps_conv1d()},
                          {"feedforward_modules", list_json(compact_targets(feedforward, model()))},
                          {"init_ia3_weights", true},
                          {"modules_to_save", nullptr},
                          {"target_modules", list_json(wrapped_targets())}}),
        options_.targets);
  }

 private:
  bool takes(const BaseLinear& linear) const {
    return is_feedforward_[static_cast<size_t>(linear.index())];
  }

  Ia3Options options_;
  std::vector<bool> is_feedforward_;  // by BaseLinear::index()
};

}  // namespace

std::unique_ptr<AdapterOptions> read_ia3(const OptionReader& reader) {
  Ia3Options options;
  options.targets = read_target_modules(reader, {"k_proj", "v_proj", "down_proj"});
  const bool is_default = !reader.has("target_modules");
  options.feedforward.names =
      reader.texts("feedforward_modules",
                   is_default ? std::vector<std::string>{"down_proj"} : std::vector<std::string>{});
  reader.boolean("init_ia3_weights", true);
  return std::make_unique<MethodOptions<Ia3, Ia3Options>>(std::move(options));
}

}  // namespace shardtune::adapters
