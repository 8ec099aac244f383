// The verbs of the program: one file and one line of verbs.cpp each. A verb gets the arguments
// after its name, throws on failure and returns the exit code otherwise.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace shardtune::launch {

using Arguments = std::span<const std::string>;

struct Verb {
  std::string_view name;
  std::string_view summary;
  int (*run)(Arguments arguments);  // null: of a later version
};

std::span<const Verb> verbs();
/// ConfigError with the nearest name when unknown; UnsupportedError when it is not there yet.
const Verb& find_verb(const std::string& name);

int run_train(Arguments arguments);
int run_plan(Arguments arguments);
int run_audit(Arguments arguments);
int run_eval(Arguments arguments);
int run_generate(Arguments arguments);
int run_chat(Arguments arguments);
int run_tokenize(Arguments arguments);
int run_export(Arguments arguments);
int run_inspect(Arguments arguments);
int run_report(Arguments arguments);
int run_version(Arguments arguments);

}  // namespace shardtune::launch
