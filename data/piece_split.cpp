#include "data/piece_split.h"

#include <unicode/uchar.h>

#include <algorithm>

#include "data/text_split.h"

namespace shardtune::data {
namespace {

enum class LetterCase { kExact, kAny };

bool is_line_end(char c) { return c == '\r' || c == '\n'; }

/// 's 't 're 've 'm 'll 'd at an apostrophe, or 0. Under kAny also in capitals, and with the long s
/// that case folding makes equal to s.
std::size_t contraction_length(std::string_view rest, LetterCase letter_case) {
  if (rest.size() < 2 || rest[0] != '\'')
    return 0;
  const auto letter = [&](std::size_t at) {
    const char c = rest[at];
    return letter_case == LetterCase::kAny && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = letter(1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd')
    return 2;
  if (rest.size() < 3)
    return 0;
  if (letter_case == LetterCase::kAny && rest.substr(1, 2) == "\xC5\xBF")
    return 3;
  const char second = letter(2);
  const bool two_letters =
      ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
  return two_letters ? 3 : 0;
}

/// \s+(?!\S) and \s+: all of a run at the end of the text, else all but its last character, and a
/// single one where that leaves nothing.
std::size_t space_piece_end(std::string_view text, std::size_t begin) {
  std::size_t offset = begin;
  std::size_t last = begin;
  while (offset < text.size()) {
    const ClassAt at = class_at(text, offset);
    if (at.char_class != CharClass::kSpace)
      return last > begin ? last : offset;
    last = offset;
    offset += static_cast<std::size_t>(at.length);
  }
  return offset;
}

/// \s*[\r\n]+, else as above. White space is scanned at most three times: what follows the last
/// line end of a run has none.
std::size_t line_end_or_space_end(std::string_view text, std::size_t begin) {
  std::size_t after_line_end = 0;
  std::size_t last = begin;
  std::size_t offset = begin;
  while (offset < text.size()) {
    const ClassAt at = class_at(text, offset);
    if (at.char_class != CharClass::kSpace)
      break;
    last = offset;
    offset += static_cast<std::size_t>(at.length);
    if (is_line_end(text[last]))
      after_line_end = offset;
  }
  if (after_line_end > 0)
    return after_line_end;
  return offset < text.size() && last > begin ? last : offset;
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*` at begin, or begin where it does not match; `slash` adds / to the
/// characters that may follow.
template <char kAlso>
std::size_t marks_end(std::string_view text, std::size_t begin) {
  const std::size_t start = begin + (text[begin] == ' ' ? 1 : 0);
  std::size_t offset = run_end(text, start, CharClass::kOther);
  if (offset == start)
    return begin;
  while (offset < text.size() && (is_line_end(text[offset]) || text[offset] == kAlso))
    ++offset;
  return offset;
}

/// Llama-3's pattern with numbers of up to kMaxDigits.
template <int kMaxDigits>
std::size_t llama_piece_end(std::string_view text, std::size_t begin) {
  const ClassAt first = class_at(text, begin);
  const std::size_t next = begin + static_cast<std::size_t>(first.length);
  if (first.char_class == CharClass::kLetter)
    return run_end(text, next, CharClass::kLetter);
  if (text[begin] == '\'') {
    if (const std::size_t length = contraction_length(text.substr(begin), LetterCase::kAny))
      return begin + length;
  }
  if (first.char_class == CharClass::kNumber) {
    std::size_t end = next;
    for (int i = 1; i < kMaxDigits && end < text.size(); ++i) {
      const ClassAt at = class_at(text, end);
      if (at.char_class != CharClass::kNumber)
        break;
      end += static_cast<std::size_t>(at.length);
    }
    return end;
  }
  if (!is_line_end(text[begin]) && next < text.size()) {
    const ClassAt second = class_at(text, next);
    if (second.char_class == CharClass::kLetter)
      return run_end(text, next + static_cast<std::size_t>(second.length), CharClass::kLetter);
  }
  const std::size_t end = marks_end<'\n'>(text, begin);
  return end > begin ? end : line_end_or_space_end(text, begin);
}

/// The two halves of tekken's words: [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}].
struct WordChar {
  bool head = false;
  bool tail = false;
  std::size_t length = 1;
};

/// Category of a letter that is newer than ICU: of those only these have cases.
uint32_t new_letter_mask(int32_t value) {
  const bool upper = value == 0x1C89 || value == 0xA7CB || value == 0xA7CC || value == 0xA7DA ||
                     value == 0xA7DC || (value >= 0x10D50 && value <= 0x10D65);
  const bool lower = value == 0x1C8A || value == 0xA7CD || value == 0xA7DB ||
                     (value >= 0x10D70 && value <= 0x10D85);
  return upper ? U_GC_LU_MASK : lower ? U_GC_LL_MASK : U_GC_LO_MASK;
}

WordChar word_char_of(std::string_view text, std::size_t offset) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  if (byte < 128)
    return {byte >= 'A' && byte <= 'Z', byte >= 'a' && byte <= 'z', 1};
  const CodePoint point = decode_code_point(text, offset);
  const auto length = static_cast<std::size_t>(point.length);
  if (point.value < 0)
    return {false, false, length};
  uint32_t mask = U_GET_GC_MASK(point.value);
  if (mask == U_GC_CN_MASK && char_class(point.value) == CharClass::kLetter)
    mask = new_letter_mask(point.value);
  const bool both = (mask & (U_GC_LM_MASK | U_GC_LO_MASK | U_GC_M_MASK)) != 0;
  return {both || (mask & (U_GC_LU_MASK | U_GC_LT_MASK)) != 0, both || (mask & U_GC_LL_MASK) != 0,
          length};
}

/// Ends of head*tail+ and of head+tail* at begin; begin where there is none.
struct TekkenWord {
  std::size_t with_tail;
  std::size_t with_head;
};

TekkenWord tekken_word(std::string_view text, std::size_t begin) {
  std::size_t heads_end = begin;
  std::size_t after_last_both = begin;
  while (heads_end < text.size()) {
    const WordChar at = word_char_of(text, heads_end);
    if (!at.head)
      break;
    heads_end += at.length;
    if (at.tail)
      after_last_both = heads_end;
  }
  std::size_t end = heads_end;
  while (end < text.size()) {
    const WordChar at = word_char_of(text, end);
    if (!at.tail)
      break;
    end += at.length;
  }
  // Without a tail behind the heads, the last head that is a tail too must be it.
  return {end > heads_end ? end : after_last_both, heads_end > begin ? end : begin};
}

bool is_bloom_mark(std::string_view text, std::size_t offset) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  if (byte < 128)
    return std::string_view("()|.,!?").find(text[offset]) != std::string_view::npos;
  switch (decode_code_point(text, offset).value) {
    case 0x2026:  // horizontal ellipsis
    case 0x3002:  // ideographic full stop
    case 0xFF0C:  // full-width comma
    case 0x3001:  // ideographic comma
    case 0x0964:  // devanagari danda
    case 0x06D4:  // arabic full stop
    case 0x060C:  // arabic comma
      return true;
    default:
      return false;
  }
}

/// A character of BLOOM's words, with its length.
bool is_bloom_word(std::string_view text, std::size_t offset, std::size_t& length) {
  const ClassAt at = class_at(text, offset);
  length = static_cast<std::size_t>(at.length);
  return at.char_class != CharClass::kSpace && !is_bloom_mark(text, offset);
}

bool is_punctuation(std::string_view text, std::size_t offset, std::size_t& length) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  length = 1;
  if (byte < 128)
    return byte > ' ' && byte < 127 && detail::kAsciiClasses[byte] == CharClass::kOther;
  const CodePoint point = decode_code_point(text, offset);
  length = static_cast<std::size_t>(point.length);
  // The reference's table of \p{P} is that of Unicode 8, with two marks that have since left it.
  if (point.value < 0 || (U_GET_GC_MASK(point.value) & U_GC_P_MASK) == 0)
    return point.value == 0x166D || point.value == 0x111C9;
  UVersionInfo age;
  u_charAge(point.value, age);
  return age[0] <= 8;
}

bool is_digit_at(std::string_view text, std::size_t offset, std::size_t& length) {
  const ClassAt at = class_at(text, offset);
  length = static_cast<std::size_t>(at.length);
  return at.char_class == CharClass::kNumber ||
         (at.length == 4 && at.char_class == CharClass::kOther &&
          is_newest_number(decode_code_point(text, offset).value));
}

bool is_digit_byte(std::string_view text, std::size_t offset, std::size_t& length) {
  length = 1;
  const auto byte = static_cast<unsigned char>(text[offset]);
  // Superscripts two, three, one and the fractions stand for themselves in the byte alphabet.
  return (byte >= '0' && byte <= '9') || byte == 0xB2 || byte == 0xB3 || byte == 0xB9 ||
         (byte >= 0xBC && byte <= 0xBE);
}

using CharTest = bool (*)(std::string_view, std::size_t, std::size_t&);

/// End of the run, of characters that pass the test or of those that do not, that begins here.
template <CharTest kTest>
std::size_t alternating_run_end(std::string_view text, std::size_t begin) {
  std::size_t length = 1;
  const bool wanted = kTest(text, begin, length);
  std::size_t offset = begin + length;
  while (offset < text.size() && kTest(text, offset, length) == wanted)
    offset += length;
  return offset;
}

template <CharTest kTest>
std::size_t single_or_run_end(std::string_view text, std::size_t begin) {
  std::size_t length = 1;
  return kTest(text, begin, length) ? begin + length : alternating_run_end<kTest>(text, begin);
}

bool three_digits_at(std::string_view text, std::size_t offset) {
  const auto digit = [&](std::size_t at) { return text[at] >= '0' && text[at] <= '9'; };
  return offset + 3 <= text.size() && digit(offset) && digit(offset + 1) && digit(offset + 2);
}

struct KnownSplit {
  std::string_view pattern;
  PieceEnd splitter;
};

constexpr KnownSplit kKnown[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     &gpt2_piece_end},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     &llama3_piece_end},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     &qwen2_piece_end},
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     &tekken_piece_end},
    {R"( ?[^(\s|[.,!?…。，、।۔،])]+)", &bloom_piece_end},
    {"[0-9][0-9][0-9]", &three_digits_end}};

}  // namespace

std::size_t gpt2_piece_end(std::string_view text, std::size_t begin) {
  if (const std::size_t length = contraction_length(text.substr(begin), LetterCase::kExact))
    return begin + length;
  std::size_t offset = begin;
  if (text[begin] == ' ' && begin + 1 < text.size())
    offset = begin + 1;
  const ClassAt at = class_at(text, offset);
  if (at.char_class == CharClass::kSpace)
    return space_piece_end(text, begin);
  return run_end(text, offset + static_cast<std::size_t>(at.length), at.char_class);
}

std::size_t llama3_piece_end(std::string_view text, std::size_t begin) {
  return llama_piece_end<3>(text, begin);
}

std::size_t qwen2_piece_end(std::string_view text, std::size_t begin) {
  return llama_piece_end<1>(text, begin);
}

std::size_t tekken_piece_end(std::string_view text, std::size_t begin) {
  const ClassAt first = class_at(text, begin);
  const std::size_t next = begin + static_cast<std::size_t>(first.length);
  const bool optional = first.char_class != CharClass::kLetter &&
                        first.char_class != CharClass::kNumber && !is_line_end(text[begin]) &&
                        next < text.size();
  const TekkenWord after =
      optional ? tekken_word(text, next) : TekkenWord{next, next};  // the first character optional
  const TekkenWord here = tekken_word(text, begin);
  if (after.with_tail > next)
    return after.with_tail;
  if (here.with_tail > begin)
    return here.with_tail;
  if (after.with_head > next)
    return after.with_head;
  if (here.with_head > begin)
    return here.with_head;
  if (first.char_class == CharClass::kNumber)
    return next;
  const std::size_t end = marks_end<'/'>(text, begin);
  return end > begin ? end : line_end_or_space_end(text, begin);
}

std::size_t bloom_piece_end(std::string_view text, std::size_t begin) {
  std::size_t length = 1;
  const auto word_at = [&](std::size_t offset) {
    const std::size_t start = offset + (text[offset] == ' ' ? 1 : 0);
    return start < text.size() && is_bloom_word(text, start, length);
  };
  std::size_t offset = begin;
  if (word_at(begin)) {
    offset += text[begin] == ' ' ? 1 : 0;
    while (offset < text.size() && is_bloom_word(text, offset, length))
      offset += length;
    return offset;
  }
  do {
    offset += static_cast<std::size_t>(class_at(text, offset).length);
  } while (offset < text.size() && !word_at(offset));
  return offset;
}

std::size_t punctuation_run_end(std::string_view text, std::size_t begin) {
  return alternating_run_end<&is_punctuation>(text, begin);
}

std::size_t single_digit_end(std::string_view text, std::size_t begin) {
  return single_or_run_end<&is_digit_at>(text, begin);
}

std::size_t digit_run_end(std::string_view text, std::size_t begin) {
  return alternating_run_end<&is_digit_at>(text, begin);
}

std::size_t single_digit_byte_end(std::string_view text, std::size_t begin) {
  return single_or_run_end<&is_digit_byte>(text, begin);
}

std::size_t digit_byte_run_end(std::string_view text, std::size_t begin) {
  return alternating_run_end<&is_digit_byte>(text, begin);
}

std::size_t three_digits_end(std::string_view text, std::size_t begin) {
  if (three_digits_at(text, begin))
    return begin + 3;
  std::size_t offset = begin + 1;
  while (offset < text.size() && !three_digits_at(text, offset))
    ++offset;
  return offset;
}

std::size_t metaspace_word_end(std::string_view text, std::size_t begin) {
  constexpr std::string_view kMark = "\xE2\x96\x81";
  std::size_t offset = begin;
  while (text.substr(offset, kMark.size()) == kMark)
    offset += kMark.size();
  return std::min(text.find(kMark, offset), text.size());
}

PieceEnd known_splitter(std::string_view pattern) {
  for (const KnownSplit& known : kKnown) {
    if (known.pattern == pattern)
      return known.splitter;
  }
  return nullptr;
}

}  // namespace shardtune::data
