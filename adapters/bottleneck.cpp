// Bottleneck adapters: after a branch f (attention, MLP) of a layer with residual r, f becomes
// f + s up(act(down(x))) with x = f (Houlsby), f + r (Pfeiffer) or r (parallel); norms inside the
// adapter and other places of the residual as AdapterHub's options say.
// Source  Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00247; He et al.
// 2021, arXiv:2110.04366
#include <algorithm>
#include <array>
#include <cmath>

#include "adapters/adapter_base.h"
#include "adapters/bottleneck_options.h"
#include "adapters/methods.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"
#include "models/family.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using models::Branch;
using models::BranchParts;
using models::PassContext;

constexpr float kNormEps = 1e-5f;

/// A weight and a bias.
struct Affine {
  ParameterId weight = kNoParameter;
  ParameterId bias = kNoParameter;
};

/// The adapter of one branch of one layer.
struct Site {
  Affine norm_before, down, up, norm_after;
  ParameterId scaling = kNoParameter;
  bool exists() const { return down.weight != kNoParameter; }
};

// torch's trunc_normal_ with bounds of two deviations: draws outside are drawn again.
Initializer truncated_normal_values(float deviation) {
  return [deviation](const CounterRng& rng, std::span<float> values) {
    for (size_t i = 0; i < values.size(); ++i) {
      uint64_t index = i;
      while (std::abs(rng.normal(index)) > 2.0f)
        index += values.size();
      values[i] = rng.normal(index) * deviation;
    }
  };
}

class Bottleneck : public AdapterBase {
 public:
  static constexpr std::string_view kName = "bottleneck";

  Bottleneck(const BottleneckOptions& options, models::Model& model)
      : AdapterBase(model), options_(options), hidden_(model.config().hidden_size) {
    const int64_t layers = model.config().num_layers;
    options.check_layers(layers);
    sites_.resize(static_cast<size_t>(layers));
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (options.leaves_out(layer))
        continue;
      if (options.mh_adapter)
        declare_site(layer, Branch::kAttention);
      if (options.output_adapter)
        declare_site(layer, Branch::kMlp);
    }
    if (tensors().empty())
      throw ConfigError("adapter.leave_out: every layer is left out. Name fewer layers.");
  }

  std::string_view method() const override { return kName; }
  bool changes_branches() const override { return true; }

  Variable after_branch(Tape& tape, const BranchParts& parts, const PassContext& context) override {
    const Site& site = sites_[static_cast<size_t>(context.layer)][index_of(parts.branch)];
    if (!site.exists())
      return parts.output;
    const Variable output = autograd::cast(tape, parts.output, DType::kFloat32);
    return options_.is_parallel ? beside(tape, site, {parts.branch, parts.input, output}, context)
                                : behind(tape, site, {parts.branch, parts.input, output}, context);
  }

  bool mergeable() const override { return false; }
  std::string why_not_mergeable() const override {
    return "it has a non-linearity between its products, and they stand beside no single weight";
  }
  void merge_rows(const models::BaseLinear&, int64_t, int64_t, const TensorView&) const override {}

  AdapterFolder folder() const override { return kAdapterHubFolder; }
  io::Json peft_config(const std::string& base_model) const override {
    const models::ModelConfig& config = model().config();
    io::Json json = io::Json::object();
    json.set("config", options_.to_json());
    json.set("hidden_size", hidden_);
    json.set("model_class", models::families().at(config.model_type).architecture);
    json.set("model_name", base_model);
    json.set("model_type", config.model_type);
    json.set("name", options_.adapter_name);
    json.set("version", "adapters.1.3.0");
    return json;
  }

 private:
  static size_t index_of(Branch branch) { return branch == Branch::kAttention ? 0 : 1; }

  void declare_site(int64_t layer, Branch branch) {
    const models::Family& family = models::families().at(model().config().model_type);
    const std::string place = branch == Branch::kAttention ? "attention" : "output";
    const std::string path = std::string(family.layers) + std::to_string(layer) + "." + place +
                             "_adapters.adapters." + options_.adapter_name + ".";
    const UnitId unit = model().layer_unit(static_cast<int>(layer));
    const int64_t width = options_.bottleneck_size(layer, hidden_);
    Site& site = sites_[static_cast<size_t>(layer)][index_of(branch)];
    const auto add = [&](const std::string& name, Shape shape, Initializer initial) {
      return declare({unit, path + name, shape, std::move(initial), Reads::kNothing, ""});
    };
    const auto add_norm = [&](const std::string& name, Affine& norm) {
      norm.weight = add(name + ".weight", {hidden_}, constant_values(1.0f));
      norm.bias = add(name + ".bias", {hidden_}, constant_values(0.0f));
    };
    // The library holds this norm a second time, as the first module of its down part.
    if (options_.ln_before) {
      add_norm("adapter_norm_before", site.norm_before);
      name_again(path + "adapter_down.0.weight", tensors().size() - 2);
      name_again(path + "adapter_down.0.bias", tensors().size() - 1);
    }
    const std::string down = options_.ln_before ? "adapter_down.1" : "adapter_down.0";
    site.down.weight = add(down + ".weight", {width, hidden_}, initial_of(hidden_, false));
    site.down.bias = add(down + ".bias", {width}, constant_values(0.0f));
    site.up.weight = add("adapter_up.weight", {hidden_, width}, initial_of(width, true));
    site.up.bias = add("adapter_up.bias", {hidden_}, constant_values(0.0f));
    if (options_.ln_after)
      add_norm("adapter_norm_after", site.norm_after);
    if (!options_.scaling_kind.empty()) {
      const int64_t count = options_.scaling_kind == "channel" ? hidden_ : 1;
      site.scaling = add("scaling", {count}, constant_values(1.0f));
    }
  }

  Initializer initial_of(int64_t fan_in, bool is_up) const {
    if (options_.init_weights == "mam_adapter")
      return is_up ? constant_values(0.0f) : kaiming_values(fan_in);
    return options_.init_weights == "houlsby" ? truncated_normal_values(0.01f)
                                              : normal_values(0.02f);
  }

  /// f + change, the change computed from r; `parts` in f32.
  Variable beside(Tape& tape, const Site& site, const BranchParts& parts,
                  const PassContext& context) const {
    Variable change = transform(tape, site, parts.input, parts.branch, context);
    if (options_.ln_after)
      change = norm(tape, change, site.norm_after, DType::kFloat32);
    const Variable changed = autograd::add(tape, parts.output, change);
    return add_residual(tape, changed, parts.input, options_.original_ln_after ? 0 : -1);
  }

  /// The same computed from f, with or without r.
  Variable behind(Tape& tape, const Site& site, const BranchParts& parts,
                  const PassContext& context) const {
    const Variable& f = parts.output;
    const Variable& r = parts.input;
    const Variable x = options_.original_ln_before ? autograd::add(tape, f, r) : f;
    const Variable& residual = options_.residual_before_ln ? f : x;
    Variable changed = transform(tape, site, x, parts.branch, context);
    // What the model adds is r: it counts as taken away where the adapter adds none.
    int times_residual = options_.original_ln_after ? 0 : -1;
    if (options_.ln_after && options_.adapter_residual_before_ln) {
      changed =
          norm(tape, autograd::add(tape, residual, changed), site.norm_after, DType::kFloat32);
      return add_residual(tape, changed, r, times_residual);
    }
    if (options_.ln_after)
      changed = norm(tape, changed, site.norm_after, DType::kFloat32);
    if (!options_.residual_before_ln && options_.original_ln_before)
      ++times_residual;
    return add_residual(tape, autograd::add(tape, f, changed), r, times_residual);
  }

  static Variable add_residual(Tape& tape, const Variable& x, const Variable& residual, int times) {
    if (times == 0)
      return x;
    return autograd::add(
        tape, x,
        times > 0 ? residual : autograd::scaled(tape, residual, static_cast<float>(times)));
  }

  Variable norm(Tape& tape, const Variable& x, const Affine& norm, DType dtype) const {
    return autograd::layer_norm(tape, x, {norm.weight, norm.bias, kNormEps, dtype});
  }

  /// s up(act(down(x))) in f32; products in the compute dtype.
  Variable transform(Tape& tape, const Site& site, const Variable& x, Branch branch,
                     const PassContext& context) const {
    const DType dtype = model().compute_dtype();
    const Variable seen = options_.ln_before ? norm(tape, x, site.norm_before, dtype)
                                             : autograd::cast(tape, x, dtype);
    Variable inner = affine(tape, seen, site.down);
    if (const auto activation = options_.activation())
      inner = autograd::activate(tape, *activation, inner);
    const Variable up = autograd::cast(tape, affine(tape, inner, site.up), DType::kFloat32);
    // Beside the sites of linears, which have small numbers.
    const uint64_t place = (uint64_t{1} << 32) + index_of(branch);
    return drop_elements(tape, scale(tape, site, up), options_.dropout, context, place);
  }

  static Variable affine(Tape& tape, const Variable& x, const Affine& of) {
    return autograd::add_bias(tape, autograd::linear(tape, x, of.weight), of.bias);
  }

  Variable scale(Tape& tape, const Site& site, const Variable& up) const {
    if (options_.scaling_kind.empty())
      return options_.scaling == 1.0
                 ? up
                 : autograd::scaled(tape, up, static_cast<float>(options_.scaling));
    Variable row = tape.parameter(site.scaling);
    if (options_.scaling_kind == "learned") {
      Tensor ones(Shape{hidden_, 1}, DType::kFloat32);
      std::ranges::fill(ones.span<float>(), 1.0f);
      row = autograd::matmul(tape, Variable::constant(std::move(ones)),
                             autograd::reshape(tape, row, {1, 1}), kernels::Transpose::kNo);
      row = autograd::reshape(tape, row, {hidden_});
    }
    return autograd::mul(tape, up, row);
  }

  BottleneckOptions options_;
  int64_t hidden_;
  std::vector<std::array<Site, 2>> sites_;  // by layer and branch
};

}  // namespace

std::unique_ptr<AdapterOptions> read_bottleneck(const OptionReader& reader) {
  return std::make_unique<MethodOptions<Bottleneck, BottleneckOptions>>(parse_bottleneck(reader));
}

}  // namespace shardtune::adapters
