#include "data/text_stream.h"

#include <string_view>

#include "data/text_split.h"

namespace shardtune::data {
namespace {

/// Length of the end of `text` that could be the beginning of a character.
size_t unfinished_bytes(std::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80)
      continue;
    const size_t wanted = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return wanted > back ? back : 0;
  }
  return 0;
}

}  // namespace

std::string TextStream::push(int32_t id) {
  if (tokenizer_.is_special(id))
    return "";
  std::string bytes = tokenizer_.token_bytes(id);
  // Decoders take a space from the beginning of a text.
  if (is_first_ && bytes.starts_with(' '))
    bytes = tokenizer_.decode({id}, {});
  is_first_ = false;
  pending_ += bytes;
  const size_t whole = pending_.size() - unfinished_bytes(pending_);
  const std::string text = replace_invalid_utf8(std::string_view(pending_).substr(0, whole));
  pending_.erase(0, whole);
  return text;
}

std::string TextStream::finish() {
  const std::string text = replace_invalid_utf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace shardtune::data
