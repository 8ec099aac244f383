// UTF-8 decoding and the splits that byte-level BPE makes before merging: single digits, and the
// pattern of GPT-2. No regular expression engine: every function is one pass, so time is linear.
// A byte that is no part of valid UTF-8 counts as one character that is neither letter, number nor
// space (as U+FFFD would be) and keeps its value.
#pragma once

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

/// End of the first piece of text[begin..) under GPT-2's pattern
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// Errors  none; begin < text.size()
std::size_t gpt2_piece_end(std::string_view text, std::size_t begin);

enum class DigitSplit { kNone, kRuns, kIndividual };
/// End of the first part of text[begin..): a number character (or a run of them), or all the text
/// before the next one.
std::size_t digit_part_end(std::string_view text, std::size_t begin, DigitSplit split);

/// Unicode normal form C; invalid bytes stay as they are.
std::string normalize_nfc(std::string_view text);

/// Positions just before and after the white space around [begin, end) of the text, bounded by
/// `low`: what added tokens with lstrip and rstrip swallow.
std::size_t skip_space_left(std::string_view text, std::size_t begin, std::size_t low);
std::size_t skip_space_right(std::string_view text, std::size_t end);
bool word_char_before(std::string_view text, std::size_t offset);
bool word_char_at(std::string_view text, std::size_t offset);

}  // namespace shardtune::data
