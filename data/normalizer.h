// What is done to a text before it is cut: the normalizer of a tokenizer.json as a list of steps.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/split_step.h"

namespace shardtune::data {

struct NormalizeStep {
  enum class Kind { kNfc, kPrepend, kReplace };
  Kind kind = Kind::kNfc;
  std::string from;  // kReplace: a literal text
  std::string to;    // kReplace, kPrepend
};

/// Linear in the text. kPrepend adds nothing to an empty text, nor inside of another.
std::string normalize(const std::vector<NormalizeStep>& steps, std::string_view text,
                      TextStart start);

}  // namespace shardtune::data
