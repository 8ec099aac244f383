#include "core/instruction_set.h"

#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/registry.h"

namespace shardtune {

namespace {

constexpr const char* kVariable = "SHARDTUNE_MAX_CPU_ISA";

struct Word {
  std::string_view name;
  InstructionSet set;
};
constexpr Word kWords[] = {{"baseline", InstructionSet::kBaseline},
                           {"avx2", InstructionSet::kAvx2},
                           {"avx512", InstructionSet::kAvx512},
                           {"native", InstructionSet::kNative}};

std::string from_environment() {
  const char* text = std::getenv(kVariable);
  return text == nullptr || *text == '\0' ? "native" : text;
}

std::optional<InstructionSet> find(std::string_view name) {
  for (const Word& word : kWords) {
    if (word.name == name)
      return word.set;
  }
  return std::nullopt;
}

}  // namespace

InstructionSet instruction_set_limit() {
  return find(from_environment()).value_or(InstructionSet::kNative);
}

void check_instruction_set_limit() {
  const std::string name = from_environment();
  if (find(name))
    return;
  std::vector<std::string> known;
  for (const Word& word : kWords)
    known.emplace_back(word.name);
  throw ConfigError(std::string(kVariable) + ": expected an instruction set, found '" + name + "'" +
                    known_names_hint(name, known));
}

}  // namespace shardtune
