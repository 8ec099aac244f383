#include "io/text.h"

#include <algorithm>
#include <cstring>

namespace shardtune::io {

namespace {
// Length of the well-formed UTF-8 sequence at the start of text, 0 when there is none.
// Table 3-7 of the Unicode standard.
size_t sequence_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto continues = [&](size_t i) { return i < text.size() && (byte(i) & 0xc0u) == 0x80u; };
  const unsigned first = byte(0);
  if (first < 0x80)
    return 1;
  if (first >= 0xc2 && first <= 0xdf)
    return continues(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    if (!continues(1) || !continues(2))
      return 0;
    const bool overlong = first == 0xe0 && byte(1) < 0xa0;
    const bool surrogate = first == 0xed && byte(1) > 0x9f;
    return overlong || surrogate ? 0 : 3;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    if (!continues(1) || !continues(2) || !continues(3))
      return 0;
    const bool overlong = first == 0xf0 && byte(1) < 0x90;
    const bool beyond = first == 0xf4 && byte(1) > 0x8f;
    return overlong || beyond ? 0 : 4;
  }
  return 0;
}
}  // namespace

std::optional<int64_t> find_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    uint64_t word = 0;
    if (i + sizeof(word) <= text.size()) {
      std::memcpy(&word, text.data() + i, sizeof(word));
      if ((word & 0x8080808080808080ull) == 0) {  // eight ASCII bytes
        i += sizeof(word);
        continue;
      }
    }
    const size_t length = sequence_length(text.substr(i));
    if (length == 0)
      return static_cast<int64_t>(i);
    i += length;
  }
  return std::nullopt;
}

std::string quote_text(std::string_view text, size_t max_bytes) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string result = "\"";
  size_t i = 0;
  while (i < text.size() && i < max_bytes) {
    const auto first = static_cast<unsigned char>(text[i]);
    const size_t length = sequence_length(text.substr(i));
    if (length == 0 || first < 0x20 || first == 0x7f) {
      result += {'\\', 'x', kHex[first >> 4], kHex[first & 15u]};
      ++i;
    } else {
      result += text.substr(i, length);
      i += length;
    }
  }
  return result + (i < text.size() ? "...\"" : "\"");
}

}  // namespace shardtune::io
