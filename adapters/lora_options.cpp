#include "adapters/lora_options.h"

#include <cmath>

#include "core/token_batch.h"

namespace shardtune::adapters {

namespace {

constexpr io::NumberRange kRanks{1, 65536};
constexpr io::NumberRange kAlphas{0, 1e6, true};
constexpr std::string_view kNiterPrefix = "pissa_niter_";

void parse_init(const OptionReader& reader, LoraOptions& options) {
  std::string name = reader.text("init_lora_weights", "kaiming");
  if (name.starts_with(kNiterPrefix) && name.size() < kNiterPrefix.size() + 4) {
    const std::string digits = name.substr(kNiterPrefix.size());
    if (!digits.empty() && digits.find_first_not_of("0123456789") == std::string::npos) {
      options.pissa_niter = std::stoll(digits);
      name = options.pissa_niter > 0 ? "pissa" : name;
    }
  }
  const std::vector<std::pair<std::string, LoraInit>> known = {
      {"kaiming", LoraInit::kKaiming},   {"true", LoraInit::kKaiming},
      {"gaussian", LoraInit::kGaussian}, {"orthogonal", LoraInit::kOrthogonal},
      {"pissa", LoraInit::kPissa},       {"olora", LoraInit::kOlora},
      {"loftq", LoraInit::kLoftq},       {"eva", LoraInit::kEva}};
  for (const auto& [word, init] : known) {
    if (word == name)
      options.init = init;
  }
  if (options.is_new) {
    std::vector<std::string> words;
    for (const auto& [word, init] : known)
      words.push_back(word);
    if (!name.starts_with("pissa") && reader.has("init_lora_weights"))
      reader.choice("init_lora_weights", "kaiming", words);
    else if (name != "pissa" && name.starts_with("pissa"))
      reader.error("init_lora_weights", "expected pissa or pissa_niter_N with N from 1 to 999.");
    return;
  }
  // A saved adapter's tensors stand for themselves, unless they are relative to a changed base.
  for (const char* word : {"pissa", "olora", "loftq", "corda", "mica", "lora_ga"}) {
    if (name.starts_with(word))
      throw UnsupportedError("init_lora_weights '" + name +
                             "': the saved tensors are relative to a base that this start changed. "
                             "Save it again with PEFT's path_initial_model_for_weight_conversion.");
  }
  options.init = LoraInit::kKaiming;
}

}  // namespace

namespace {

// PEFT's section; of its values those have a meaning here that leave the base as it is.
void parse_loftq(const OptionReader& reader, LoraOptions& options) {
  if (!options.is_new)
    return;
  for (const auto& [name, value] : reader.pattern("loftq_config", {1, 1000})) {
    if (name == "loftq_bits" && (value == 4.0 || value == 8.0))
      options.loftq_bits = static_cast<int64_t>(value);
    else if (name == "loftq_iter" && value != 1.0)
      reader.error("loftq_config",
                   "expected loftq_iter: 1. More iterations quantise the base again around the "
                   "adapter; here the base keeps the codes of its own weights.");
    else if (name != "loftq_iter")
      reader.error("loftq_config",
                   "expected loftq_bits 4 or 8 and loftq_iter 1, found '" + name + "'.");
  }
  if (options.loftq_bits > 0 && options.init != LoraInit::kLoftq)
    reader.error("loftq_config", "belongs to init_lora_weights: loftq.");
}

void parse_eva(const OptionReader& reader, LoraOptions& options) {
  const char* const kConfig = "eva_config";
  if (!options.is_new || !reader.has(kConfig))
    return;
  if (options.init != LoraInit::kEva)
    reader.error(kConfig, "belongs to init_lora_weights: eva.");
  const auto section = reader.section(kConfig);
  options.eva.rho = section->number("rho", 2.0, {1, 1e6});
  options.eva.use_label_mask = section->boolean("use_label_mask", true);
  options.eva.whiten = section->boolean("whiten", false);
  options.eva.adjust_scaling_factors = section->boolean("adjust_scaling_factors", true);
  section->integer("label_mask_value", kIgnoreLabel, {kIgnoreLabel, kIgnoreLabel});
  if (section->has("tau"))
    section->error("tau",
                   "has no meaning here: directions come from a fixed number of passes over a "
                   "fixed sample, not from batches until they stay the same. Leave it out.");
  section->finish();
}

void parse_qalora(const OptionReader& reader, LoraOptions& options) {
  const int64_t group = reader.integer("qalora_group_size", 16, {1, 1 << 20});
  const bool is_asked_for = reader.has("qalora_group_size");
  if (!reader.boolean("use_qalora", false)) {
    if (is_asked_for && options.is_new)
      reader.error("qalora_group_size", "has no effect without 'use_qalora: true'.");
    return;
  }
  options.qalora_group_size = group;
  if (options.use_dora)
    reader.error("use_qalora",
                 "expected use_dora: false: rows scaled by DoRA change by no constant "
                 "of a group. Use one of them.");
  if (options.init != LoraInit::kKaiming && options.init != LoraInit::kGaussian)
    reader.error("init_lora_weights",
                 "expected kaiming or gaussian with use_qalora: other starts "
                 "are directions of single inputs.");
}

}  // namespace

namespace {

void parse_merge_aware(const OptionReader& reader, LoraOptions& options) {
  const char* const kWeights = "merge_aware_weights";
  const bool is_asked = reader.boolean("merge_aware", false);
  if (!is_asked) {
    if (reader.has(kWeights))
      reader.error(kWeights, "belongs to merge_aware: true.");
    return;
  }
  const std::string form = reader.text(kWeights, "bf16");
  if (!quant::kept_forms().contains(form)) {
    reader.error(kWeights,
                 "expected one of bf16, int8, residual, found '" + form +
                     "'. The dequantised base alone does not do: updates that are small against "
                     "its grid would be rounded away in every step.");
    return;
  }
  options.merge_aware = quant::kept_forms().at(form);
  const auto refuse = [&](const std::string& key, const std::string& why) {
    reader.error(key, why + " Leave it out, or write 'merge_aware: false'.");
  };
  if (options.lora_dropout > 0.0)
    refuse("lora_dropout",
           "merge_aware: the weights W + scale * B A are quantised as one, so no token can drop "
           "inputs of A alone.");
  if (options.use_dora)
    refuse("use_dora",
           "merge_aware: the way back through the norms of merged rows is not there yet, see "
           "docs/status.md.");
  if (options.is_relative())
    refuse("init_lora_weights",
           "merge_aware: pissa and olora are saved as a LoRA of twice the rank, whose merged "
           "weights would not have the bits that were trained with.");
  if (options.qalora_group_size > 0)
    refuse("use_qalora",
           "merge_aware: a change of whole groups does not need it, it merges into minima of kept "
           "blocks.");
  if (options.init == LoraInit::kLoftq)
    refuse("init_lora_weights",
           "merge_aware: nothing that quantisation took is missing from the kept weights, so "
           "loftq has nothing to give back.");
}

}  // namespace

int64_t LoraOptions::rank_of(const std::string& path) const {
  return static_cast<int64_t>(pattern_value(rank_pattern, path, static_cast<double>(lora_rank)));
}

double LoraOptions::scale_of(const std::string& path) const {
  const auto rank = static_cast<double>(rank_of(path));
  return pattern_value(alpha_pattern, path, lora_alpha) / (use_rslora ? std::sqrt(rank) : rank);
}

LoraOptions parse_lora(const OptionReader& reader) {
  LoraOptions options;
  options.is_new = reader.source() == OptionReader::Source::kRun;
  if (!options.is_new && !reader.has("r"))
    reader.error("r", "is missing.");
  options.lora_rank = reader.integer("r", 8, kRanks);
  options.lora_alpha = reader.number(
      "lora_alpha", options.is_new ? 2.0 * static_cast<double>(options.lora_rank) : 8.0, kAlphas);
  options.lora_dropout = reader.number("lora_dropout", 0.0, {0, 1, false, true});
  options.use_rslora = reader.boolean("use_rslora", false);
  options.use_dora = reader.boolean("use_dora", false);
  options.rank_pattern = reader.pattern("rank_pattern", kRanks);
  for (auto& [name, rank] : options.rank_pattern) {
    if (rank != std::floor(rank))
      reader.error("rank_pattern", "expected whole ranks.");
  }
  options.alpha_pattern = reader.pattern("alpha_pattern", kAlphas);
  if (options.is_new)
    options.loraplus_lr_ratio = reader.number("loraplus_lr_ratio", 1.0, {0, 1e6, true});
  parse_init(reader, options);
  parse_loftq(reader, options);
  parse_eva(reader, options);
  parse_qalora(reader, options);
  if (options.init == LoraInit::kOrthogonal && options.lora_rank % 2 != 0)
    reader.error("init_lora_weights", "orthogonal needs an even lora_rank.");
  if (options.is_new)
    parse_merge_aware(reader, options);
  options.targets = read_target_modules(reader, {kAllLinear}, "lora_only");
  return options;
}

std::vector<std::pair<std::string, std::string>> lora_keys(const LoraOptions& options) {
  const auto truth = [](bool value) { return std::string(value ? "true" : "false"); };
  std::string init = "kaiming";
  switch (options.init) {
    case LoraInit::kKaiming:
      break;
    case LoraInit::kGaussian:
      init = "gaussian";
      break;
    case LoraInit::kOrthogonal:
      init = "orthogonal";
      break;
    case LoraInit::kOlora:
      init = "olora";
      break;
    case LoraInit::kLoftq:
      init = "loftq";
      break;
    case LoraInit::kEva:
      init = "eva";
      break;
    case LoraInit::kPissa:
      init = options.pissa_niter > 0
                 ? std::string(kNiterPrefix) + std::to_string(options.pissa_niter)
                 : "pissa";
      break;
  }
  auto keys = target_keys(options.targets);
  keys.insert(keys.end(),
              {{"method", "lora"},
               {"alpha_pattern", pattern_json(options.alpha_pattern).dump()},
               {"init_lora_weights", init},
               {"loftq_config", options.loftq_bits == 0
                                    ? "{}"
                                    : "{loftq_bits: " + std::to_string(options.loftq_bits) + "}"},
               {"lora_alpha", number_json(options.lora_alpha).dump()},
               {"lora_dropout", number_json(options.lora_dropout).dump()},
               {"lora_rank", std::to_string(options.lora_rank)},
               {"loraplus_lr_ratio", number_json(options.loraplus_lr_ratio).dump()},
               {"merge_aware", truth(options.merge_aware.has_value())},
               {"rank_pattern", pattern_json(options.rank_pattern).dump()},
               {"use_dora", truth(options.use_dora)},
               {"use_qalora", truth(options.qalora_group_size > 0)},
               {"use_rslora", truth(options.use_rslora)}});
  if (options.merge_aware)
    keys.emplace_back("merge_aware_weights", quant::name_of(*options.merge_aware));
  if (options.init == LoraInit::kEva)
    keys.emplace_back("eva_config",
                      "{adjust_scaling_factors: " + truth(options.eva.adjust_scaling_factors) +
                          ", rho: " + number_json(options.eva.rho).dump() +
                          ", use_label_mask: " + truth(options.eva.use_label_mask) +
                          ", whiten: " + truth(options.eva.whiten) + "}");
  if (options.qalora_group_size > 0)
    keys.emplace_back("qalora_group_size", std::to_string(options.qalora_group_size));
  return keys;
}

io::Json lora_peft_config(const LoraOptions& options, const std::vector<std::string>& targets,
                          const std::string& base_model) {
  // [A; A0] and [B, -B0]: twice the rank, and an alpha that keeps the scale.
  const double rank_factor = options.is_relative() ? 2.0 : 1.0;
  const double alpha_factor = options.use_rslora ? std::sqrt(rank_factor) : rank_factor;
  const auto times = [](Pattern pattern, double factor) {
    std::erase_if(pattern, [](const auto& entry) { return entry.second == 0.0; });
    for (auto& [name, value] : pattern)
      value *= factor;
    return pattern_json(pattern);
  };
  // An alpha that follows from the default has to be written where only the rank has a pattern.
  std::vector<std::pair<std::string, io::Json>> own = {
      {"alpha_pattern", times(options.alpha_pattern, alpha_factor)},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"init_lora_weights", true},
      {"loftq_config", io::Json::object()},
      {"lora_alpha", number_json(options.lora_alpha * alpha_factor)},
      {"lora_bias", false},
      {"lora_dropout", options.lora_dropout},
      {"megatron_core", "megatron.core"},
      {"qalora_group_size", options.qalora_group_size > 0 ? options.qalora_group_size : 16},
      {"r", options.lora_rank * static_cast<int64_t>(rank_factor)},
      {"rank_pattern", times(options.rank_pattern, rank_factor)},
      {"target_modules", list_json(targets)},
      {"use_dora", options.use_dora},
      {"use_qalora", options.qalora_group_size > 0},
      {"use_rslora", options.use_rslora},
      {"ensure_weight_tying", false}};
  for (const char* key : kUnusedLoraKeys)
    own.emplace_back(key, nullptr);
  return peft_config_json("LORA", base_model, std::move(own));
}

}  // namespace shardtune::adapters
