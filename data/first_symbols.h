// A piece of text to the tokens that merging starts from: one per byte, or one per character with
// bytes for characters without a token.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/token_decoder.h"

namespace shardtune::data {

class FirstSymbols {
 public:
  /// -1 = no such token. A character (byte) without a token becomes its bytes' tokens where all of
  /// them exist (kText), else unknown_id, else it vanishes.
  struct Options {
    TokenAlphabet alphabet = TokenAlphabet::kByteLevel;
    std::array<int32_t, 256> byte_ids;
    std::unordered_map<int32_t, int32_t> character_ids;  // kText, by code point
    int32_t unknown_id = -1;
    bool fuse_unknown = false;  // a run of unknown ones becomes one token
  };
  FirstSymbols() = default;
  explicit FirstSymbols(Options options);

  void append(std::string_view piece, std::vector<int32_t>& symbols) const;

  struct Cursor {
    std::size_t offset = 0;  // in the piece
    bool in_unknown_run = false;
  };
  /// The same of the next bytes alone, about num_bytes of them: whole characters.
  void append_some(std::string_view piece, std::size_t num_bytes, Cursor& at,
                   std::vector<int32_t>& symbols) const;
  bool has_character(int32_t code_point) const { return character_id(code_point) >= 0; }

 private:
  int32_t character_id(int32_t code_point) const;
  void append_bytes(std::string_view piece, std::size_t end, Cursor& at,
                    std::vector<int32_t>& symbols) const;
  void append_characters(std::string_view piece, std::size_t end, Cursor& at,
                         std::vector<int32_t>& symbols) const;

  Options options_;
  std::vector<int32_t> common_;  // kText: code points below its size
};

}  // namespace shardtune::data
