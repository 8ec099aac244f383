#include "adapters/lora_options.h"

#include <set>

namespace shardtune::adapters {

namespace {

// A name or a path of modules has none of these; a dot alone does not make an expression.
bool is_regular_expression(const std::string& text) {
  return text.find_first_of("*+?()[]{}|^$\\") != std::string::npos;
}

}  // namespace

LoraOptions parse_lora_yaml(const io::YamlNode& section) {
  section.alias_hint("r", "lora_rank");
  section.alias_hint("rank", "lora_rank");
  section.alias_hint("lora_r", "lora_rank");
  section.alias_hint("alpha", "lora_alpha");
  section.alias_hint("dropout", "lora_dropout");
  section.alias_hint("lora_target", "target_modules");
  section.alias_hint("lora_target_modules", "target_modules");
  LoraOptions options;
  options.lora_rank = section.integer_or("lora_rank", 8, {1, 65536});
  options.lora_alpha =
      section.number_or("lora_alpha", 2.0 * static_cast<double>(options.lora_rank), {0, 1e6, true});
  options.lora_dropout = section.number_or("lora_dropout", 0.0, {0, 1, false, true});
  options.use_rslora = section.boolean_or("use_rslora", false);
  const std::string init =
      section.choice_or("init_lora_weights", "kaiming", {"kaiming", "gaussian"});
  options.init = init == "gaussian" ? LoraInit::kGaussian : LoraInit::kKaiming;
  options.targets.names = section.strings_or("target_modules", {kAllLinear});
  if (options.targets.names.empty())
    section.error("target_modules", "expected at least one name. Write for example 'all-linear'.");
  options.targets.is_pattern =
      options.targets.names.size() == 1 && is_regular_expression(options.targets.names[0]);
  return options;
}

namespace {

// Keys of adapter_config.json whose effect we do not have, with the value that means "off".
void refuse_unknown_effects(const io::JsonReader& config) {
  const auto refuse = [&](const std::string& key) {
    throw UnsupportedError(config.name() + ": " + key +
                           " is not supported yet, see docs/status.md.");
  };
  for (const char* key : {"use_dora", "lora_bias", "fan_in_fan_out", "use_qalora"}) {
    if (config.boolean_or(key, false))
      refuse(key);
  }
  for (const char* key : {"modules_to_save", "layers_to_transform", "layer_replication",
                          "exclude_modules", "target_parameters", "trainable_token_indices",
                          "alora_invocation_tokens", "arrow_config"}) {
    if (config.has(key))
      refuse(key);
  }
  for (const char* key : {"rank_pattern", "alpha_pattern"}) {
    const io::Json* pattern = config.object().find(key);
    if (pattern != nullptr && pattern->is_object() && !pattern->as_object().empty())
      refuse(key);
  }
  if (config.string_or("bias", "none") != "none")
    refuse("bias");
  // Of the initialisations only these leave the base as it was; the file is relative to a changed
  // base otherwise (PiSSA, OLoRA, LoftQ).
  const io::Json* init = config.object().find("init_lora_weights");
  if (init != nullptr && init->is_string() && init->as_string() != "gaussian" &&
      init->as_string() != "eva" && init->as_string() != "orthogonal")
    refuse("init_lora_weights '" + init->as_string() + "'");
}

}  // namespace

LoraOptions parse_lora_peft(const io::Json& json, const std::string& name) {
  const io::JsonReader config(json, name);
  refuse_unknown_effects(config);
  LoraOptions options;
  options.lora_rank = config.integer("r");
  if (options.lora_rank < 1 || options.lora_rank > 65536)
    throw DataError(name + ": r: expected an integer in [1, 65536].");
  options.lora_alpha = config.number_or("lora_alpha", 8.0);
  options.lora_dropout = config.number_or("lora_dropout", 0.0);
  options.use_rslora = config.boolean_or("use_rslora", false);
  const io::Json* targets = json.find("target_modules");
  if (targets == nullptr || targets->is_null())
    throw DataError(name + ": target_modules is missing.");
  if (targets->is_string()) {
    options.targets.names = {targets->as_string()};
    options.targets.is_pattern = targets->as_string() != kAllLinear;
    return options;
  }
  if (!targets->is_array())
    throw DataError(name + ": target_modules: expected a list or a string.");
  for (const io::Json& target : targets->as_array()) {
    if (!target.is_string())
      throw DataError(name + ": target_modules: expected strings.");
    options.targets.names.push_back(target.as_string());
  }
  return options;
}

io::Json lora_peft_config(const LoraOptions& options, const std::vector<std::string>& targets,
                          const std::string& base_model) {
  io::Json config = io::Json::object();
  config.set("alora_invocation_tokens", nullptr);
  config.set("alpha_pattern", io::Json::object());
  config.set("arrow_config", nullptr);
  config.set("auto_mapping", nullptr);
  config.set("base_model_name_or_path", base_model);
  config.set("bias", "none");
  config.set("corda_config", nullptr);
  config.set("ensure_weight_tying", false);
  config.set("eva_config", nullptr);
  config.set("exclude_modules", nullptr);
  config.set("fan_in_fan_out", false);
  config.set("inference_mode", true);
  config.set("init_lora_weights", true);
  config.set("kasa_config", nullptr);
  config.set("layer_replication", nullptr);
  config.set("layers_pattern", nullptr);
  config.set("layers_to_transform", nullptr);
  config.set("loftq_config", io::Json::object());
  config.set("lora_alpha",
             options.lora_alpha == static_cast<double>(static_cast<int64_t>(options.lora_alpha))
                 ? io::Json(static_cast<int64_t>(options.lora_alpha))
                 : io::Json(options.lora_alpha));
  config.set("lora_bias", false);
  config.set("lora_dropout", options.lora_dropout);
  config.set("lora_ga_config", nullptr);
  config.set("megatron_config", nullptr);
  config.set("megatron_core", "megatron.core");
  config.set("modules_to_save", nullptr);
  config.set("monteclora_config", nullptr);
  config.set("peft_type", "LORA");
  config.set("peft_version", "0.21.2");
  config.set("qalora_group_size", 16);
  config.set("r", options.lora_rank);
  config.set("rank_pattern", io::Json::object());
  config.set("revision", nullptr);
  io::Json names = io::Json::array();
  for (const std::string& target : targets)
    names.push_back(target);
  config.set("target_modules", std::move(names));
  config.set("target_parameters", nullptr);
  config.set("task_type", "CAUSAL_LM");
  config.set("trainable_token_indices", nullptr);
  config.set("use_bdlora", nullptr);
  config.set("use_dora", false);
  config.set("use_qalora", false);
  config.set("use_rslora", options.use_rslora);
  config.set("velora_config", nullptr);
  return config;
}

std::vector<std::string> compact_targets(const std::vector<std::string>& paths,
                                         models::Model& model) {
  const std::set<std::string> chosen(paths.begin(), paths.end());
  std::set<std::string> leaves;
  for (const std::string& path : paths)
    leaves.insert(path.substr(path.rfind('.') + 1));
  for (const models::BaseLinear* linear : model.linears()) {
    if (leaves.contains(linear->leaf_name()) && !chosen.contains(linear->path()))
      return paths;
  }
  return {leaves.begin(), leaves.end()};
}

}  // namespace shardtune::adapters
