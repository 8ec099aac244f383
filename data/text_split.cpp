#include "data/text_split.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <iterator>

namespace shardtune::data {
namespace {

struct Range {
  int32_t first;
  int32_t last;
};

// Characters newer than the Unicode version of the ICU library, as the reference classes them: its
// pattern knows Unicode 16, its digit split 17. Used only where ICU says "unassigned".
constexpr Range kNewLetters[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3},
    {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x11380, 0x11389},
    {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7},
    {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0}, {0x13460, 0x143FA},
    {0x16100, 0x1611D}, {0x16D40, 0x16D6C}, {0x18CFF, 0x18CFF}, {0x1E5D0, 0x1E5ED},
    {0x1E5F0, 0x1E5F0}, {0x2EBF0, 0x2EE5D}};
constexpr Range kNewNumbers[] = {{0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9},
                                 {0x16130, 0x16139}, {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9},
                                 {0x1E5F1, 0x1E5FA}};
constexpr Range kNewestNumbers[] = {{0x11DE0, 0x11DE9}, {0x16FF4, 0x16FF6}};

template <std::size_t kCount>
bool within(const Range (&ranges)[kCount], int32_t code_point) {
  return std::any_of(std::begin(ranges), std::end(ranges), [&](const Range& range) {
    return range.first <= code_point && code_point <= range.last;
  });
}

CharClass classify(int32_t code_point) {
  switch (u_charType(code_point)) {
    case U_UPPERCASE_LETTER:
    case U_LOWERCASE_LETTER:
    case U_TITLECASE_LETTER:
    case U_MODIFIER_LETTER:
    case U_OTHER_LETTER:
      return CharClass::kLetter;
    case U_DECIMAL_DIGIT_NUMBER:
    case U_LETTER_NUMBER:
    case U_OTHER_NUMBER:
      return CharClass::kNumber;
    case U_UNASSIGNED:
      return within(kNewLetters, code_point)   ? CharClass::kLetter
             : within(kNewNumbers, code_point) ? CharClass::kNumber
                                               : CharClass::kOther;
    default:
      return u_isUWhiteSpace(code_point) ? CharClass::kSpace : CharClass::kOther;
  }
}

bool is_continuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

/// Start of the character that ends at `offset` (which is > 0).
std::size_t previous_offset(std::string_view text, std::size_t offset) {
  std::size_t start = offset - 1;
  const std::size_t lowest = offset >= 4 ? offset - 4 : 0;
  while (start > lowest && is_continuation(static_cast<unsigned char>(text[start])))
    --start;
  const CodePoint point = decode_code_point(text, start);
  return start + static_cast<std::size_t>(point.length) == offset ? start : offset - 1;
}

/// Bytes of the longest prefix of text[offset..) that could begin a valid character, at least 1.
std::size_t maximal_subpart(std::string_view text, std::size_t offset) {
  const auto first = static_cast<unsigned char>(text[offset]);
  std::size_t length = 1;
  if (first < 0xC2 || first > 0xF4)
    return length;
  const std::size_t wanted = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  unsigned char low = 0x80, high = 0xBF;
  if (first == 0xE0)
    low = 0xA0;
  if (first == 0xED)
    high = 0x9F;
  if (first == 0xF0)
    low = 0x90;
  if (first == 0xF4)
    high = 0x8F;
  while (length < wanted && offset + length < text.size()) {
    const auto byte = static_cast<unsigned char>(text[offset + length]);
    if (byte < low || byte > high)
      break;
    low = 0x80;
    high = 0xBF;
    ++length;
  }
  return length;
}

}  // namespace

CodePoint decode_code_point(std::string_view text, std::size_t offset) {
  const auto first = static_cast<unsigned char>(text[offset]);
  if (first < 0x80)
    return {first, 1};
  const std::size_t length = maximal_subpart(text, offset);
  if (first < 0xC2 || first > 0xF4)
    return {};
  const std::size_t wanted = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (length < wanted)
    return {};
  int32_t value = first & (0x7F >> wanted);
  for (std::size_t i = 1; i < wanted; ++i)
    value = (value << 6) | (static_cast<unsigned char>(text[offset + i]) & 0x3F);
  return {value, static_cast<int>(wanted)};
}

void append_code_point(std::string& text, int32_t code_point) {
  const auto value = static_cast<uint32_t>(code_point);
  if (value < 0x80) {
    text.push_back(static_cast<char>(value));
  } else if (value < 0x800) {
    text.push_back(static_cast<char>(0xC0 | (value >> 6)));
    text.push_back(static_cast<char>(0x80 | (value & 0x3F)));
  } else if (value < 0x10000) {
    text.push_back(static_cast<char>(0xE0 | (value >> 12)));
    text.push_back(static_cast<char>(0x80 | ((value >> 6) & 0x3F)));
    text.push_back(static_cast<char>(0x80 | (value & 0x3F)));
  } else {
    text.push_back(static_cast<char>(0xF0 | (value >> 18)));
    text.push_back(static_cast<char>(0x80 | ((value >> 12) & 0x3F)));
    text.push_back(static_cast<char>(0x80 | ((value >> 6) & 0x3F)));
    text.push_back(static_cast<char>(0x80 | (value & 0x3F)));
  }
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string result;
  result.reserve(bytes.size());
  for (std::size_t offset = 0; offset < bytes.size();) {
    const CodePoint point = decode_code_point(bytes, offset);
    if (point.value >= 0) {
      result.append(bytes.substr(offset, static_cast<std::size_t>(point.length)));
      offset += static_cast<std::size_t>(point.length);
    } else {
      result.append("\xEF\xBF\xBD");
      offset += maximal_subpart(bytes, offset);
    }
  }
  return result;
}

CharClass char_class(int32_t code_point) {
  if (code_point < 0)
    return CharClass::kOther;
  return code_point < 128 ? detail::kAsciiClasses[static_cast<std::size_t>(code_point)]
                          : classify(code_point);
}

ClassAt detail::wide_class_at(std::string_view text, std::size_t offset) {
  const CodePoint point = decode_code_point(text, offset);
  return {char_class(point.value), point.length};
}

bool is_newest_number(int32_t code_point) { return within(kNewestNumbers, code_point); }

bool is_word_char(int32_t code_point) {
  if (code_point < 0)
    return false;
  const uint32_t wanted = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_hasBinaryProperty(code_point, UCHAR_ALPHABETIC) ||
         (U_GET_GC_MASK(code_point) & wanted) != 0 ||
         u_hasBinaryProperty(code_point, UCHAR_JOIN_CONTROL);
}

std::size_t skip_space_left(std::string_view text, std::size_t begin, std::size_t low) {
  while (begin > low) {
    const std::size_t start = previous_offset(text, begin);
    if (start < low || class_at(text, start).char_class != CharClass::kSpace)
      break;
    begin = start;
  }
  return begin;
}

std::size_t skip_space_right(std::string_view text, std::size_t end) {
  return run_end(text, end, CharClass::kSpace);
}

bool word_char_before(std::string_view text, std::size_t offset) {
  return offset > 0 && is_word_char(decode_code_point(text, previous_offset(text, offset)).value);
}

bool word_char_at(std::string_view text, std::size_t offset) {
  return offset < text.size() && is_word_char(decode_code_point(text, offset).value);
}

}  // namespace shardtune::data
