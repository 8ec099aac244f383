// Text from tokens as they come.
#pragma once

#include <cstdint>
#include <string>

#include "data/tokenizer.h"

namespace shardtune::data {

/// Collects the bytes of tokens and gives back what is whole UTF-8. All pieces together are the
/// text of Tokenizer::decode without special tokens (which writes more U+FFFD where byte tokens are
/// no text).
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  /// Text that can be shown after this token; special tokens add none.
  std::string push(int32_t id);
  /// What is left at the end, invalid bytes as U+FFFD.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
  bool is_first_ = true;
};

}  // namespace shardtune::data
