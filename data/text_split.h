// UTF-8 decoding, character classes, and the white space around added tokens; what the splitters of
// data/piece_split.h are made of. Every function is one pass, so time is linear.
// A byte that is no part of valid UTF-8 counts as one character that is neither letter, number nor
// space (as U+FFFD would be) and keeps its value.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace shardtune::data {

struct CodePoint {
  int32_t value = -1;  // -1: not UTF-8
  int length = 1;      // bytes
};

/// Character at text[offset]; overlong forms, surrogates and values above U+10FFFF are not UTF-8.
CodePoint decode_code_point(std::string_view text, std::size_t offset);
void append_code_point(std::string& text, int32_t code_point);
/// Invalid bytes replaced by U+FFFD, one per maximal subpart (Unicode 3.9, as Rust's lossy form).
std::string replace_invalid_utf8(std::string_view bytes);

enum class CharClass : uint8_t { kOther, kLetter, kNumber, kSpace };
/// \p{L}, \p{N} or White_Space.
CharClass char_class(int32_t code_point);
/// \w of Unicode regular expressions: alphabetic, mark, decimal digit, connector, join control.
bool is_word_char(int32_t code_point);

struct ClassAt {
  CharClass char_class;
  int length;
};

namespace detail {

constexpr std::array<CharClass, 128> make_ascii_classes() {
  std::array<CharClass, 128> classes{};
  for (std::size_t value = 0; value < 128; ++value) {
    const bool letter = (value >= 'a' && value <= 'z') || (value >= 'A' && value <= 'Z');
    const bool space = value == ' ' || (value >= 9 && value <= 13);
    classes[value] = letter                         ? CharClass::kLetter
                     : value >= '0' && value <= '9' ? CharClass::kNumber
                     : space                        ? CharClass::kSpace
                                                    : CharClass::kOther;
  }
  return classes;
}
inline constexpr std::array<CharClass, 128> kAsciiClasses = make_ascii_classes();

ClassAt wide_class_at(std::string_view text, std::size_t offset);

}  // namespace detail

inline ClassAt class_at(std::string_view text, std::size_t offset) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  if (byte < 128)
    return {detail::kAsciiClasses[byte], 1};
  return detail::wide_class_at(text, offset);
}

/// End of the run of characters of one class that begins at `offset`.
inline std::size_t run_end(std::string_view text, std::size_t offset, CharClass char_class) {
  while (offset < text.size()) {
    const ClassAt at = class_at(text, offset);
    if (at.char_class != char_class)
      break;
    offset += static_cast<std::size_t>(at.length);
  }
  return offset;
}

/// Numbers of the digit split, which are a little newer than those of patterns.
bool is_newest_number(int32_t code_point);

/// Unicode normal form C; invalid bytes stay as they are.
std::string normalize_nfc(std::string_view text);

/// Positions just before and after the white space around [begin, end) of the text, bounded by
/// `low`: what added tokens with lstrip and rstrip swallow.
std::size_t skip_space_left(std::string_view text, std::size_t begin, std::size_t low);
std::size_t skip_space_right(std::string_view text, std::size_t end);
bool word_char_before(std::string_view text, std::size_t offset);
bool word_char_at(std::string_view text, std::size_t offset);

}  // namespace shardtune::data
