#include "launch/verbs.h"

#include <vector>

#include "core/error.h"
#include "core/registry.h"

namespace shardtune::launch {
namespace {

constexpr Verb kVerbs[] = {
    {"train", "fine-tune by a YAML configuration", &run_train},
    {"plan", "memory, traffic and disk of a run before it starts", &run_plan},
    {"audit", "the tokens a run would train on, with their labels", &run_audit},
    {"eval", "loss, exact match or choice on a data file", &run_eval},
    {"generate", "continue one prompt or a file of prompts", &run_generate},
    {"chat", "a conversation in the terminal", &run_chat},
    {"tokenize", "text to token ids and back", &run_tokenize},
    {"export", "merged weights or an adapter that other tools load", &run_export},
    {"inspect", "tensors and metadata of a model, adapter or checkpoint", &run_inspect},
    {"report", "one page about a run", &run_report},
    {"version", "version, build options, CPU and libraries", &run_version},
    {"quantize", "a quantised checkpoint for other tools (later)", nullptr},
};

}  // namespace

std::span<const Verb> verbs() { return kVerbs; }

const Verb& find_verb(const std::string& name) {
  std::vector<std::string> known;
  for (const Verb& verb : kVerbs) {
    if (verb.name != name) {
      if (verb.run != nullptr)
        known.emplace_back(verb.name);
      continue;
    }
    if (verb.run == nullptr)
      throw UnsupportedError("shardtune " + name +
                             " is not there yet: docs/status.md says what is.");
    return verb;
  }
  throw ConfigError("shardtune: unknown verb '" + name + "'" + known_names_hint(name, known));
}

}  // namespace shardtune::launch
