// The texts of R8, shared by the tokenizer's test and its benchmark.
#pragma once

#include <string>
#include <vector>

namespace shardtune::testing {

/// Units of the R8 texts: each is repeated to any length.
inline std::vector<std::string> repeated_units() {
  return {"a",
          "A",
          "_",
          " ",
          "\n",
          "\t",
          "\r\n",
          "0",
          "7",
          "12",
          "123",
          "1234",
          "'",
          "'s",
          "''",
          "a'",
          "!",
          "!?",
          "-",
          "=",
          "ab",
          "the",
          "the ",
          " a",
          "  a",
          " \n",
          "\n ",
          "a\n",
          "aA",
          "Aa",
          "é",
          "e\xCC\x81",
          "\xCC\x81",
          "日",
          "日 ",
          "ع",
          "\xF0\x9F\x98\x80",
          "\xE2\x80\x8D",
          "\xFF",
          "\xE3\x81",
          "<|im_end|",
          "▁"};
}

}  // namespace shardtune::testing
