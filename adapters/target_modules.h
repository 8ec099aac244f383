// Which linears an adapter attaches to, by PEFT's rules: a list entry matches a path that equals it
// or ends with "." + it; a single string is a regular expression over the whole path (in our YAML:
// when it has a character that only expressions have); "all-linear" means every linear but the
// head. exclude_modules takes away by the same rules, layers_to_transform keeps layers by number.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "adapters/option_reader.h"
#include "adapters/trained_base.h"
#include "models/model.h"

namespace shardtune::adapters {

struct TargetModules {
  std::vector<std::string> names;  // list entries, or one expression
  bool is_pattern = false;         // names[0] is a regular expression
  std::vector<std::string> excluded;
  bool is_excluded_pattern = false;
  std::vector<int64_t> layers;  // empty: all
  bool is_none = false;         // PEFT's dummy-target-modules: no linear is changed
  TrainedParts trained;         // beside them
};

inline constexpr const char* kAllLinear = "all-linear";

/// PEFT's word for no linear at all: what is trained are parts of the base.
inline constexpr const char* kNoTargets = "dummy-target-modules";

/// Reads target_modules, exclude_modules, layers_to_transform and the trained parts of the base;
/// `otherwise` stands for an absent target_modules, `only_word` for "lora_only" of `bias` where the
/// method has that key.
TargetModules read_target_modules(const OptionReader& reader, std::vector<std::string> otherwise,
                                  std::string_view only_word = {});

/// The same as keys of a run's section.
std::vector<std::pair<std::string, std::string>> target_keys(const TargetModules& targets);

/// What targets.trained asks of the base.
models::TrainedBase trained_base_of(const TargetModules& targets);

/// Tables of the vocabulary that target_modules names by their modules' paths ("lm_head" is the
/// head's, tied or not); all-linear names none.
struct TargetTables {
  std::string embedding;  // path, empty: not named
  std::string head;
  bool any() const { return !embedding.empty() || !head.empty(); }
};
/// ConfigError: a table that modules_to_save trains whole
TargetTables match_target_tables(const TargetModules& targets, const models::Model& model);

/// Whether a method changes tables too; one that does not refuses their names.
enum class Tables { kRefused, kChanged };

/// The model's linears that match, in model order.
/// Errors  ConfigError: a name or pattern that matches nothing (lists the candidates), nothing
///         left, a linear that modules_to_save trains whole
std::vector<models::BaseLinear*> match_target_modules(const TargetModules& targets,
                                                      models::Model& model,
                                                      Tables tables = Tables::kRefused);

/// Leaf names when they say the same as the whole paths, else the paths.
std::vector<std::string> compact_targets(const std::vector<std::string>& paths,
                                         models::Model& model);

/// The value of the first entry whose regular expression matches the end of the path, by whole
/// components: PEFT's rank_pattern and alpha_pattern.
double pattern_value(const Pattern& pattern, const std::string& path, double otherwise);

}  // namespace shardtune::adapters
