#include "adapters/bottleneck_options.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/error.h"

namespace shardtune::adapters {

namespace {

using kernels::Activation;

constexpr const char* kDefaultLayer = "default";
constexpr int64_t kMaxBottleneck = 1 << 20;

const std::map<std::string, std::optional<Activation>>& activations() {
  static const std::map<std::string, std::optional<Activation>> kNames = {
      {"gelu", Activation::kGelu},
      {"gelu_new", Activation::kGeluTanh},
      {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"linear", std::nullopt},
      {"relu", Activation::kRelu},
      {"sigmoid", Activation::kSigmoid},
      {"silu", Activation::kSilu},
      {"swish", Activation::kSilu},
      {"tanh", Activation::kTanh}};
  return kNames;
}

std::vector<std::string> activation_names() {
  std::vector<std::string> names;
  for (const auto& [name, activation] : activations())
    names.push_back(name);
  return names;
}

// Options that a named form stands for; a saved adapter has every option.
BottleneckOptions preset(const OptionReader& reader) {
  BottleneckOptions options;
  if (reader.source() == OptionReader::Source::kSaved) {
    options.original_ln_before = false;
    return options;
  }
  const std::string name = reader.choice("config", "seq_bn",
                                         {"seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn",
                                          "pfeiffer", "houlsby", "parallel", "scaled_parallel"});
  if (name == "double_seq_bn" || name == "houlsby") {
    options.mh_adapter = true;
    options.non_linearity = "swish";
    options.original_ln_before = false;
  } else if (name != "seq_bn" && name != "pfeiffer") {
    options.is_parallel = true;
    options.reduction_factor = {{kDefaultLayer, 2.0}};
    options.original_ln_before = false;
    options.init_weights = "mam_adapter";
    options.scaling = 4.0;
    options.scaling_kind = name.starts_with("scaled") ? "learned" : "";
  }
  return options;
}

bool is_layer(const std::string& key) {
  return !key.empty() && key.size() <= 6 &&
         std::ranges::all_of(key, [](char c) { return c >= '0' && c <= '9'; }) &&
         (key.size() == 1 || key[0] != '0');
}

void read_reduction_factor(const OptionReader& reader, BottleneckOptions& options) {
  const io::NumberRange range{.min = 0.001, .max = 1e6};
  if (!reader.is_mapping("reduction_factor")) {
    double& factor = options.reduction_factor.front().second;
    factor = reader.number("reduction_factor", factor, range);
    return;
  }
  options.has_factor_by_layer = true;
  options.reduction_factor = reader.pattern("reduction_factor", range);
  for (const auto& [layer, factor] : options.reduction_factor) {
    if (layer != kDefaultLayer && !is_layer(layer))
      reader.error("reduction_factor", "expected layers and 'default', found '" + layer +
                                           "'. Write for example '{\"1\": 8, default: 16}'.");
  }
  std::ranges::sort(options.reduction_factor);
}

void read_scaling(const OptionReader& reader, BottleneckOptions& options) {
  const bool is_saved = reader.source() == OptionReader::Source::kSaved;
  if (reader.is_text("scaling")) {
    const std::string text = reader.text("scaling", "");
    if (is_saved || text == "learned" || text == "channel") {
      options.scaling_kind = reader.choice("scaling", "", {"learned", "channel"});
      options.scaling = 1.0;
      return;
    }
  }
  if (!reader.has("scaling"))
    return;
  options.scaling = reader.number("scaling", options.scaling, {.min = -1e6, .max = 1e6});
  options.scaling_kind.clear();
}

// Without effect while phm_layer is false, which it has to be.
constexpr const char* kPhmKeys[] = {"phm_dim",
                                    "factorized_phm_W",
                                    "shared_W_phm",
                                    "shared_phm_rule",
                                    "phm_c_init",
                                    "phm_init_range",
                                    "factorized_phm_rule",
                                    "learn_phm",
                                    "phm_rank",
                                    "phm_bias",
                                    "hypercomplex_nonlinearity",
                                    "init_weights_seed",
                                    "inv_adapter_reduction_factor"};

void refuse_what_is_not_there(const OptionReader& reader) {
  const auto refuse = [&](const char* key, const std::string& why) { reader.error(key, why); };
  if (reader.boolean("phm_layer", false))
    refuse("phm_layer", "Compacter's layers are not there. Leave it out for plain products.");
  if (reader.boolean("use_gating", false))
    refuse("use_gating",
           "the gate is a mean over all tokens of a sample, so that a token would see those after "
           "it. Leave it out.");
  if (reader.boolean("cross_adapter", false))
    refuse("cross_adapter", "there is no cross attention in a decoder. Leave it out.");
  if (reader.has("inv_adapter"))
    refuse("inv_adapter", "invertible adapters on the embedding are not there. Leave it out.");
  if (reader.number("stochastic_depth", 0.0, {.min = 0.0, .max = 1.0}) > 0.0)
    refuse("stochastic_depth", "is not there. Leave it out, or use dropout.");
  if (reader.source() == OptionReader::Source::kSaved) {
    for (const char* key : kPhmKeys)
      reader.has(key);
  }
}

void read_adapter_name(const OptionReader& reader, BottleneckOptions& options) {
  options.adapter_name = reader.text("adapter_name", options.adapter_name);
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  };
  if (options.adapter_name.empty() || options.adapter_name.size() > 100 ||
      !std::ranges::all_of(options.adapter_name, is_plain))
    reader.error(
        "adapter_name",
        "expected letters, digits, '_' and '-', as it becomes part of the tensors' names.");
}

void read_residual_before_ln(const OptionReader& reader, BottleneckOptions& options) {
  if (reader.text("residual_before_ln", "true") == "post_add") {
    reader.error("residual_before_ln",
                 "'post_add' needs a norm after the branch, which this model's layers do not have. "
                 "Write true or false.");
    return;
  }
  options.residual_before_ln = reader.boolean("residual_before_ln", options.residual_before_ln);
}

std::string yaml_of(bool value) { return value ? "true" : "false"; }

io::Json factors_json(const BottleneckOptions& options) {
  return options.has_factor_by_layer ? pattern_json(options.reduction_factor)
                                     : number_json(options.reduction_factor.front().second);
}

io::Json layers_json(const std::vector<int64_t>& layers) {
  io::Json list = io::Json::array();
  for (const int64_t layer : layers)
    list.push_back(layer);
  return list;
}

// As Python's a // b has it.
double floor_quotient(double a, double b) {
  const double quotient = (a - std::fmod(a, b)) / b;
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1.0 : floored;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> BottleneckOptions::keys() const {
  const std::string scale = scaling_kind.empty() ? io::Json(scaling).dump() : scaling_kind;
  return {{"adapter_name", adapter_name},
          {"adapter_residual_before_ln", yaml_of(adapter_residual_before_ln)},
          {"dropout", io::Json(dropout).dump()},
          {"init_weights", init_weights},
          {"is_parallel", yaml_of(is_parallel)},
          {"leave_out", layers_json(leave_out).dump()},
          {"ln_after", yaml_of(ln_after)},
          {"ln_before", yaml_of(ln_before)},
          {"mh_adapter", yaml_of(mh_adapter)},
          {"non_linearity", non_linearity},
          {"original_ln_after", yaml_of(original_ln_after)},
          {"original_ln_before", yaml_of(original_ln_before)},
          {"output_adapter", yaml_of(output_adapter)},
          {"reduction_factor", factors_json(*this).dump()},
          {"residual_before_ln", yaml_of(residual_before_ln)},
          {"scaling", scale}};
}

std::optional<kernels::Activation> BottleneckOptions::activation() const {
  return activations().at(non_linearity);
}

bool BottleneckOptions::leaves_out(int64_t layer) const {
  return std::ranges::find(leave_out, layer) != leave_out.end();
}

int64_t BottleneckOptions::bottleneck_size(int64_t layer, int64_t hidden_size) const {
  auto found = std::ranges::find(reduction_factor, std::to_string(layer),
                                 &std::pair<std::string, double>::first);
  if (found == reduction_factor.end())
    found =
        std::ranges::find(reduction_factor, kDefaultLayer, &std::pair<std::string, double>::first);
  if (found == reduction_factor.end()) {
    throw ConfigError("adapter.reduction_factor: expected a factor for layer " +
                      std::to_string(layer) + ", found none. Add 'default: 16'.");
  }
  const double size = floor_quotient(static_cast<double>(hidden_size), found->second);
  if (size > static_cast<double>(kMaxBottleneck)) {
    throw ConfigError("adapter.reduction_factor: " + io::Json(found->second).dump() +
                      " makes a bottleneck wider than " + std::to_string(kMaxBottleneck) +
                      ". Use a larger factor.");
  }
  return std::max<int64_t>(1, static_cast<int64_t>(size));
}

void BottleneckOptions::check_layers(int64_t num_layers) const {
  const auto check = [&](const char* key, int64_t layer) {
    if (layer >= num_layers) {
      throw ConfigError("adapter." + std::string(key) + ": expected layers from 0 to " +
                        std::to_string(num_layers - 1) + ", found " + std::to_string(layer) + ".");
    }
  };
  for (const int64_t layer : leave_out)
    check("leave_out", layer);
  for (const auto& [layer, factor] : reduction_factor) {
    if (layer != kDefaultLayer)
      check("reduction_factor", std::stoll(layer));
  }
}

io::Json BottleneckOptions::to_json() const {
  const std::vector<std::pair<std::string, io::Json>> members = {
      {"adapter_residual_before_ln", adapter_residual_before_ln},
      {"cross_adapter", false},
      {"dropout", dropout},
      {"factorized_phm_W", true},
      {"factorized_phm_rule", false},
      {"hypercomplex_nonlinearity", "glorot-uniform"},
      {"init_weights", init_weights},
      {"init_weights_seed", nullptr},
      {"inv_adapter", nullptr},
      {"inv_adapter_reduction_factor", nullptr},
      {"is_parallel", is_parallel},
      {"learn_phm", true},
      {"leave_out", layers_json(leave_out)},
      {"ln_after", ln_after},
      {"ln_before", ln_before},
      {"mh_adapter", mh_adapter},
      {"non_linearity", non_linearity},
      {"original_ln_after", original_ln_after},
      {"original_ln_before", original_ln_before},
      {"output_adapter", output_adapter},
      {"phm_bias", true},
      {"phm_c_init", "normal"},
      {"phm_dim", 4},
      {"phm_init_range", 0.0001},
      {"phm_layer", false},
      {"phm_rank", 1},
      {"reduction_factor", factors_json(*this)},
      {"residual_before_ln", residual_before_ln},
      // The library takes a number for a factor only where it has a point.
      {"scaling", scaling_kind.empty() ? io::Json(scaling) : io::Json(scaling_kind)},
      {"shared_W_phm", false},
      {"shared_phm_rule", true},
      {"stochastic_depth", 0.0},
      {"use_gating", false}};
  io::Json json = io::Json::object();
  for (const auto& [key, value] : members)
    json.set(key, value);
  return json;
}

BottleneckOptions parse_bottleneck(const OptionReader& reader) {
  BottleneckOptions options = preset(reader);
  const auto boolean = [&](const char* key, bool& value) { value = reader.boolean(key, value); };
  boolean("mh_adapter", options.mh_adapter);
  boolean("output_adapter", options.output_adapter);
  boolean("is_parallel", options.is_parallel);
  boolean("original_ln_before", options.original_ln_before);
  boolean("original_ln_after", options.original_ln_after);
  boolean("ln_before", options.ln_before);
  boolean("ln_after", options.ln_after);
  boolean("adapter_residual_before_ln", options.adapter_residual_before_ln);
  read_residual_before_ln(reader, options);
  options.non_linearity = reader.choice("non_linearity", options.non_linearity, activation_names());
  if (!activations().contains(options.non_linearity))
    options.non_linearity = "relu";  // the error has been noted
  options.init_weights =
      reader.choice("init_weights", options.init_weights, {"bert", "mam_adapter", "houlsby"});
  read_reduction_factor(reader, options);
  read_scaling(reader, options);
  options.leave_out = reader.integers("leave_out");
  options.dropout = reader.number("dropout", 0.0, {.min = 0.0, .max = 1.0, .max_exclusive = true});
  refuse_what_is_not_there(reader);
  read_adapter_name(reader, options);
  if (!options.mh_adapter && !options.output_adapter)
    reader.error("output_adapter", "expected mh_adapter or output_adapter, found neither.");
  return options;
}

}  // namespace shardtune::adapters
