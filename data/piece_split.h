// The split patterns of known tokenizer families as splitters of our own: each gives the end of the
// first piece of text[begin..), in one pass and without a regular expression engine, so time is
// linear for any text. Every character of a text is in a piece.
#pragma once

#include <cstddef>
#include <string_view>

namespace shardtune::data {

/// begin < text.size(); returns more than begin. A text handed in is one piece of the step before:
/// look-ahead ends with it, as in the reference.
using PieceEnd = std::size_t (*)(std::string_view text, std::size_t begin);

/// GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t gpt2_piece_end(std::string_view text, std::size_t begin);

/// Llama-3: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
///          ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
std::size_t llama3_piece_end(std::string_view text, std::size_t begin);
/// Qwen2: Llama-3's with single \p{N}.
std::size_t qwen2_piece_end(std::string_view text, std::size_t begin);
/// Mistral's tekken: words cut before an upper-case letter that follows a lower-case one, single
/// numbers, slashes with the line ends behind marks; no contractions.
std::size_t tekken_piece_end(std::string_view text, std::size_t begin);
/// BLOOM: ` ?` and a run of characters that are neither white space nor one of ( ) | and its marks,
/// or all the characters up to the next such run.
std::size_t bloom_piece_end(std::string_view text, std::size_t begin);

/// Runs of punctuation (ASCII's marks and \p{P}), and what stands between them.
std::size_t punctuation_run_end(std::string_view text, std::size_t begin);
/// A number character alone, or the text up to the next one.
std::size_t single_digit_end(std::string_view text, std::size_t begin);
/// A run of number characters, or the text up to the next one.
std::size_t digit_run_end(std::string_view text, std::size_t begin);
/// [0-9][0-9][0-9], or the text up to the next three.
std::size_t three_digits_end(std::string_view text, std::size_t begin);
/// single_digit_end and digit_run_end after ByteLevel, where each byte is a character of its
/// alphabet, of which nine beside the digits are numbers.
std::size_t single_digit_byte_end(std::string_view text, std::size_t begin);
std::size_t digit_byte_run_end(std::string_view text, std::size_t begin);
/// Up to the next U+2581 that follows another character.
std::size_t metaspace_word_end(std::string_view text, std::size_t begin);

/// The splitter of a pattern as tokenizer.json files spell it, nullptr when it is none of ours.
PieceEnd known_splitter(std::string_view pattern);

}  // namespace shardtune::data
