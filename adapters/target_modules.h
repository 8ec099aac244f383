// Which linears an adapter attaches to, by PEFT's rules: a list entry matches a path that equals it
// or ends with "." + it; a single string is a regular expression over the whole path (in our YAML:
// when it has a character that only expressions have); "all-linear" means every linear but the
// head.
#pragma once

#include <string>
#include <vector>

#include "models/model.h"

namespace shardtune::adapters {

struct TargetModules {
  std::vector<std::string> names;  // list entries, or one expression
  bool is_pattern = false;         // names[0] is a regular expression
};

inline constexpr const char* kAllLinear = "all-linear";

/// The model's linears that match, in model order.
/// Errors  ConfigError: a name or pattern that matches nothing (lists the candidates)
std::vector<models::BaseLinear*> match_target_modules(const TargetModules& targets,
                                                      models::Model& model);

}  // namespace shardtune::adapters
