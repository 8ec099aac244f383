// A SentencePiece BPE vocabulary (pieces with scores and types) as a TokenizerSpec: what
// tokenizer.model and GGUF's "llama" model have in common.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/tokenizer_spec.h"

namespace shardtune::data {

enum class PieceType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct SentencePieces {
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<PieceType> types;
  bool add_dummy_prefix = true;  // a space before the text
};

/// Fills vocabulary, merges, added tokens and pipeline. Two neighbours merge when their texts laid
/// end to end are a piece; the one of the highest score first, then from left to right.
/// DataError: a piece or score that cannot be one.
void fill_sentencepiece_spec(SentencePieces pieces, TokenizerSpec& spec);

/// Reads a tokenizer.model (SentencePiece's protobuf). UnsupportedError: unigram and other models,
/// a character map, or rules of white space that are not there; DataError: damaged.
SentencePieces parse_sentencepiece_model(const std::string& bytes, const std::string& name);

}  // namespace shardtune::data
