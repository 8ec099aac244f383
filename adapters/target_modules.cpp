#include "adapters/target_modules.h"

#include <algorithm>
#include <set>

#include "core/registry.h"
#include "io/pattern.h"

namespace shardtune::adapters {

namespace {

bool matches_name(const std::string& path, const std::string& name) {
  return path == name || path.ends_with("." + name);
}

[[noreturn]] void nothing_matches(const std::string& name, const std::set<std::string>& leaves) {
  const std::vector<std::string> candidates(leaves.begin(), leaves.end());
  throw ConfigError("adapter.target_modules: '" + name + "' matches no linear of the model" +
                    known_names_hint(name, candidates));
}

// Methods beside LoRA have no form for a table: PEFT has none on embeddings either.
void refuse_table(const std::string& name, const models::Model& model) {
  std::vector<std::string> tables = {"lm_head.weight"};  // of a tied model, too
  for (const models::VocabularyTable* table : model.tables())
    tables.push_back(table->name());
  for (const std::string& table : tables) {
    if (matches_name(table.substr(0, table.rfind('.')), name))
      throw UnsupportedError("adapter.target_modules: '" + name +
                             "' is a table of the vocabulary or of positions. Those of the "
                             "vocabulary (embedding and head) are changed by method lora alone, "
                             "positions by none; modules_to_save: [" +
                             name + "] trains a full copy.");
  }
}

// A name or a path of modules has none of these; a dot alone does not make an expression.
bool is_regular_expression(const std::string& text) {
  return text.find_first_of("*+?()[]{}|^$\\") != std::string::npos;
}

// Number of the layer in a path: its first component that is a number; -1 without one.
int64_t layer_number(const std::string& path) {
  size_t begin = 0;
  while (begin < path.size()) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    const bool is_number = !part.empty() && part.size() < 10 &&
                           part.find_first_not_of("0123456789") == std::string::npos;
    if (is_number)
      return std::stoll(part);
    begin = end + 1;
  }
  return -1;
}

bool is_excluded(const TargetModules& targets, const std::string& path) {
  if (targets.is_excluded_pattern)
    return io::Pattern(targets.excluded.at(0), "adapter.exclude_modules").matches_all(path);
  return std::ranges::any_of(targets.excluded,
                             [&](const std::string& name) { return matches_name(path, name); });
}

bool is_in_layers(const TargetModules& targets, const std::string& path) {
  return targets.layers.empty() ||
         std::ranges::find(targets.layers, layer_number(path)) != targets.layers.end();
}

bool is_all_linear(const TargetModules& targets) {
  return !targets.is_pattern && targets.names.size() == 1 && targets.names[0] == kAllLinear;
}

// Whether target_modules names the linear of this path.
bool is_named(const TargetModules& targets, const std::string& path) {
  if (targets.is_none || is_all_linear(targets))
    return !targets.is_none;
  if (targets.is_pattern)
    return io::Pattern(targets.names.at(0), "adapter.target_modules").matches_all(path);
  return std::ranges::any_of(targets.names,
                             [&](const std::string& name) { return matches_name(path, name); });
}

constexpr std::string_view kBiasSuffix = ".bias";
constexpr const char* kHeadPath = "lm_head";

bool is_target(const TargetModules& targets, const std::string& path) {
  return is_named(targets, path) && is_in_layers(targets, path) && !is_excluded(targets, path);
}

// What exclude_modules and layers_to_transform leave.
std::vector<models::BaseLinear*> without_excluded(const TargetModules& targets,
                                                  const std::vector<models::BaseLinear*>& matched,
                                                  const TargetTables& tables) {
  std::vector<models::BaseLinear*> kept;
  std::ranges::copy_if(matched, std::back_inserter(kept), [&](const models::BaseLinear* linear) {
    return is_in_layers(targets, linear->path()) && !is_excluded(targets, linear->path());
  });
  if (kept.empty() && !tables.any())
    throw ConfigError(
        "adapter: exclude_modules and layers_to_transform leave none of the linears that "
        "target_modules names. Remove one of them.");
  return kept;
}

std::vector<models::BaseLinear*> match_targets(const TargetModules& targets, models::Model& model,
                                               const TargetTables& tables);

}  // namespace

TargetModules read_target_modules(const OptionReader& reader, std::vector<std::string> otherwise,
                                  std::string_view only_word) {
  TargetModules targets;
  const bool is_saved = reader.source() == OptionReader::Source::kSaved;
  const auto is_pattern = [&](const char* key, const std::vector<std::string>& names) {
    return is_saved ? reader.is_text(key) && names.at(0) != kAllLinear
                    : names.size() == 1 && is_regular_expression(names[0]);
  };
  if (is_saved && !reader.has("target_modules"))
    reader.error("target_modules", "is missing.");
  targets.names = reader.texts("target_modules", std::move(otherwise));
  if (targets.names.empty())
    reader.error("target_modules", "expected at least one name. Write for example 'all-linear'.");
  else
    targets.is_pattern = is_pattern("target_modules", targets.names);
  targets.excluded = reader.texts("exclude_modules", {});
  targets.is_excluded_pattern =
      !targets.excluded.empty() && is_pattern("exclude_modules", targets.excluded);
  targets.layers = reader.integers("layers_to_transform");
  targets.is_none = is_saved && targets.names == std::vector<std::string>{kNoTargets};
  targets.trained = read_trained_parts(reader, only_word);
  return targets;
}

std::vector<std::pair<std::string, std::string>> target_keys(const TargetModules& targets) {
  std::string layers;
  for (const int64_t layer : targets.layers)
    layers += (layers.empty() ? "" : ", ") + std::to_string(layer);
  const auto list = [](const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names)
      text += (text.empty() ? "" : ", ") + io::Json(name).dump();
    return "[" + text + "]";
  };
  auto keys = trained_keys(targets.trained);
  keys.insert(keys.end(), {{"exclude_modules", list(targets.excluded)},
                           {"layers_to_transform", "[" + layers + "]"},
                           {"target_modules", list(targets.names)}});
  return keys;
}

models::TrainedBase trained_base_of(const TargetModules& targets) {
  using Kind = models::TrainedBase::Kind;
  using Bias = TrainedParts::Bias;
  models::TrainedBase base;
  if (targets.trained.is_none())
    return base;
  base.tie = targets.trained.ensure_weight_tying ? models::TrainedBase::Tie::kShared
                                                 : models::TrainedBase::Tie::kSplit;
  base.trains = [targets](const std::string& name, Kind kind) {
    const bool is_bias = name.ends_with(kBiasSuffix);
    const Bias bias = targets.trained.bias;
    if (is_bias && bias == Bias::kAll)
      return true;
    if (kind == Kind::kLinearBias && bias == Bias::kOnly &&
        is_target(targets, name.substr(0, name.size() - kBiasSuffix.size())))
      return true;
    return is_in_modules(targets.trained.modules_to_save, name);
  };
  return base;
}

TargetTables match_target_tables(const TargetModules& targets, const models::Model& model) {
  TargetTables tables;
  if (targets.is_none || is_all_linear(targets))
    return tables;
  const std::string& name = model.tables().front()->name();
  const std::string embedding = name.substr(0, name.rfind('.'));
  if (is_target(targets, embedding))
    tables.embedding = embedding;
  if (is_target(targets, kHeadPath))
    tables.head = kHeadPath;
  for (const std::string& path : {tables.embedding, tables.head}) {
    if (!path.empty() && is_in_modules(targets.trained.modules_to_save, path + ".weight"))
      throw ConfigError("adapter.modules_to_save: " + path +
                        " is trained whole and is among target_modules as well. Leave it out of "
                        "one of them.");
  }
  return tables;
}

std::vector<models::BaseLinear*> match_target_modules(const TargetModules& targets,
                                                      models::Model& model, Tables tables) {
  check_modules(targets.trained.modules_to_save, model);
  if (targets.is_none)
    return {};
  const TargetTables changed =
      tables == Tables::kChanged ? match_target_tables(targets, model) : TargetTables();
  const auto matched = without_excluded(targets, match_targets(targets, model, changed), changed);
  for (const models::BaseLinear* linear : matched) {
    if (linear->is_trained())
      throw ConfigError("adapter.modules_to_save: " + linear->path() +
                        " is trained whole and is among target_modules as well. Leave it out of "
                        "one of them (exclude_modules).");
  }
  return matched;
}

namespace {

std::vector<models::BaseLinear*> match_targets(const TargetModules& targets, models::Model& model,
                                               const TargetTables& tables) {
  const std::vector<models::BaseLinear*> linears = model.linears();
  std::set<std::string> leaves;
  for (const models::BaseLinear* linear : linears)
    leaves.insert(linear->leaf_name());
  if (is_all_linear(targets))
    return linears;
  std::vector<models::BaseLinear*> matched;
  if (targets.is_pattern) {
    // As PEFT takes it: the whole path must match.
    const io::Pattern pattern(targets.names.at(0), "adapter.target_modules");
    std::copy_if(linears.begin(), linears.end(), std::back_inserter(matched),
                 [&](models::BaseLinear* linear) { return pattern.matches_all(linear->path()); });
    if (matched.empty() && !tables.any())
      nothing_matches(targets.names[0], leaves);
    return matched;
  }
  for (const std::string& name : targets.names) {
    const bool is_table = (!tables.embedding.empty() && matches_name(tables.embedding, name)) ||
                          (!tables.head.empty() && matches_name(tables.head, name));
    if (!is_table && std::none_of(linears.begin(), linears.end(), [&](const auto* linear) {
          return matches_name(linear->path(), name);
        })) {
      refuse_table(name, model);
      nothing_matches(name, leaves);
    }
  }
  std::ranges::copy_if(linears, std::back_inserter(matched), [&](models::BaseLinear* linear) {
    return is_named(targets, linear->path());
  });
  return matched;
}

}  // namespace

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

double pattern_value(const Pattern& pattern, const std::string& path, double otherwise) {
  for (const auto& [name, value] : pattern) {
    if (matches_name(path, name))
      return value;
    const io::Pattern expression("(.*\\.)?(" + name + ")", "adapter: pattern of ranks or alphas");
    if (expression.matches_all(path))
      return value;
  }
  return otherwise;
}

}  // namespace shardtune::adapters
