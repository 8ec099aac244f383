// What a BPE tokenizer is made of, read from GGUF metadata, tokenizer.json or tokenizer.model and
// checked before use: all sources fill this and one class runs it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/added_tokens.h"
#include "data/normalizer.h"
#include "data/split_step.h"
#include "data/token_decoder.h"
#include "data/tokenizer.h"

namespace shardtune::data {

/// Bounds of hostile files: far above every published vocabulary.
inline constexpr int64_t kMaxVocabulary = 4'000'000;
inline constexpr std::size_t kMaxTokenBytes = 4096;

enum class IgnoreMerges { kNo, kYes };

/// The parts of a tokenizer.json that say how text is treated, as JSON texts ("" = null): kept by
/// sources without such a file, so that one can be written.
struct PipelineJson {
  std::string normalizer;
  std::string pre_tokenizer;
  std::string decoder;
};

struct TokenizerSpec {
  std::string where;               // file name for messages
  std::vector<std::string> texts;  // by id, in the alphabet; "" where no token has the id
  std::vector<uint8_t> in_model;   // by id: part of the BPE vocabulary
  std::vector<std::pair<std::string, std::string>> merges;
  /// Rank of each merge; empty: its index. Equal ones merge from left to right.
  std::vector<uint32_t> merge_ranks;
  std::vector<AddedToken> added;
  TokenAlphabet alphabet = TokenAlphabet::kByteLevel;
  std::vector<NormalizeStep> normalizer;
  std::vector<SplitStep> steps;
  DecoderOptions decoder;
  PipelineJson pipeline;
  bool byte_fallback = false;
  IgnoreMerges ignore_merges = IgnoreMerges::kNo;
  std::optional<int32_t> unknown_id;  // for bytes without a token
  bool fuse_unknown = false;
  std::optional<int32_t> unknown_name;  // only named in tokenizer_config.json
  std::vector<int32_t> prefix_ids;      // post-processor
  std::vector<int32_t> suffix_ids;
  std::optional<int32_t> bos, eos, pad;
  std::vector<int32_t> stop_ids;  // beyond eos
  std::string chat_template;
  std::string tokenizer_json;  // "" = written when asked for
  std::string tokenizer_config_json;
};

/// Builds the tokenizer. DataError: duplicate tokens, merges of unknown tokens, ids out of range.
std::unique_ptr<Tokenizer> make_bpe_tokenizer(TokenizerSpec spec);

/// tokenizer.json and tokenizer_config.json of a spec read from GGUF.
std::string write_tokenizer_json(const TokenizerSpec& spec);
std::string write_tokenizer_config(const TokenizerSpec& spec, int64_t model_max_length);

/// Tokens that end an answer where a model has them as special tokens.
void add_end_of_turn_tokens(TokenizerSpec& spec);

}  // namespace shardtune::data
