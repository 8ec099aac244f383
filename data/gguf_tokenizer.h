// A tokenizer as the metadata of a GGUF file, for llama.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "data/tokenizer.h"
#include "io/gguf_write.h"

namespace shardtune::data {

/// tokenizer.ggml.* and tokenizer.chat_template. num_rows is that of the embedding: rows without a
/// token get one that nothing is encoded to. A SentencePiece vocabulary gets scores that put its
/// merges into their order, since tokenizer.json has none.
/// Errors  UnsupportedError naming the part of the tokenizer that has no form in GGUF
std::vector<io::GgufPair> gguf_tokenizer(const Tokenizer& tokenizer, int64_t num_rows);

/// Compares a tokenizer with the one that was read back from a file: ids of short texts, special
/// tokens, ends, template.
/// Errors  UnsupportedError naming the text whose ids differ
void check_same_tokenizer(const Tokenizer& expected, const Tokenizer& found);

}  // namespace shardtune::data
