#include "adapters/trained_base.h"

#include <algorithm>

#include "core/registry.h"

namespace shardtune::adapters {

namespace {

using Bias = TrainedParts::Bias;

std::string parent_of(const std::string& path) {
  const size_t dot = path.rfind('.');
  return dot == std::string::npos ? std::string() : path.substr(0, dot);
}

}  // namespace

std::string bias_word(const TrainedParts& parts) {
  switch (parts.bias) {
    case Bias::kAll:
      return "all";
    case Bias::kOnly:
      return parts.only_word;
    case Bias::kNone:
      break;
  }
  return "none";
}

TrainedParts read_trained_parts(const OptionReader& reader, std::string_view only_word) {
  TrainedParts parts;
  parts.only_word = only_word;
  parts.modules_to_save = reader.texts("modules_to_save", {});
  if (std::ranges::find(parts.modules_to_save, std::string()) != parts.modules_to_save.end())
    reader.error("modules_to_save", "expected names of modules, found an empty one.");
  parts.ensure_weight_tying = reader.boolean("ensure_weight_tying", false);
  if (only_word.empty())
    return parts;
  const std::string bias = reader.choice("bias", "none", {"none", "all", parts.only_word});
  if (bias != "none")
    parts.bias = bias == "all" ? Bias::kAll : Bias::kOnly;
  return parts;
}

std::vector<std::pair<std::string, std::string>> trained_keys(const TrainedParts& parts) {
  std::vector<std::pair<std::string, std::string>> keys = {
      {"ensure_weight_tying", parts.ensure_weight_tying ? "true" : "false"},
      {"modules_to_save", list_json(parts.modules_to_save).dump()}};
  if (!parts.only_word.empty())
    keys.emplace_back("bias", bias_word(parts));
  return keys;
}

bool is_in_modules(const std::vector<std::string>& modules, const std::string& tensor) {
  for (std::string path = parent_of(tensor); !path.empty(); path = parent_of(path)) {
    if (std::ranges::any_of(modules, [&](const std::string& name) { return path.ends_with(name); }))
      return true;
  }
  return false;
}

void check_modules(const std::vector<std::string>& modules, const models::Model& model) {
  for (const std::string& module : modules) {
    const bool matches =
        std::ranges::any_of(model.trained_tensors(), [&](const models::TrainedTensor& tensor) {
          return is_in_modules({module}, tensor.name) ||
                 (!tensor.tied.empty() && is_in_modules({module}, tensor.tied));
        });
    if (matches)
      continue;
    const ParameterStore& store = model.store();
    std::vector<std::string> candidates = {"lm_head"};  // of a tied model, too
    for (int32_t i = 0; i < store.num_parameters(); ++i) {
      // "model.embed_tokens.weight.chunk0" -> "embed_tokens"
      const std::string& name = store.spec(ParameterId{i}).name;
      const std::string path = parent_of(name.substr(0, name.find(".chunk")));
      const std::string leaf = path.substr(path.rfind('.') + 1);
      if (!leaf.empty() && std::ranges::find(candidates, leaf) == candidates.end())
        candidates.push_back(leaf);
    }
    throw ConfigError("adapter.modules_to_save: '" + module + "' matches no module of the model" +
                      known_names_hint(module, candidates));
  }
}

}  // namespace shardtune::adapters
