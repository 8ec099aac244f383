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

}  // namespace

std::vector<models::BaseLinear*> match_target_modules(const TargetModules& targets,
                                                      models::Model& model) {
  const std::vector<models::BaseLinear*> linears = model.linears();
  std::set<std::string> leaves;
  for (const models::BaseLinear* linear : linears)
    leaves.insert(linear->leaf_name());
  if (!targets.is_pattern && targets.names.size() == 1 && targets.names[0] == kAllLinear)
    return linears;
  std::vector<models::BaseLinear*> matched;
  if (targets.is_pattern) {
    // As PEFT takes it: the whole path must match.
    const io::Pattern pattern(targets.names.at(0), "adapter.target_modules");
    std::copy_if(linears.begin(), linears.end(), std::back_inserter(matched),
                 [&](models::BaseLinear* linear) { return pattern.matches_all(linear->path()); });
    if (matched.empty())
      nothing_matches(targets.names[0], leaves);
    return matched;
  }
  for (const std::string& name : targets.names) {
    if (std::none_of(linears.begin(), linears.end(), [&](const models::BaseLinear* linear) {
          return matches_name(linear->path(), name);
        }))
      nothing_matches(name, leaves);
  }
  std::copy_if(linears.begin(), linears.end(), std::back_inserter(matched),
               [&](const models::BaseLinear* linear) {
                 return std::any_of(
                     targets.names.begin(), targets.names.end(),
                     [&](const std::string& name) { return matches_name(linear->path(), name); });
               });
  return matched;
}

}  // namespace shardtune::adapters
