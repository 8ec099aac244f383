// The values of tokenizer.ggml.pre that byte-level BPE files have, and what each stands for.
#pragma once

#include <span>
#include <string_view>

#include "data/tokenizer_spec.h"

namespace shardtune::data {

/// A value of tokenizer.ggml.pre, and the pre_tokenizer that the published tokenizer.json of its
/// models has.
struct GgufSplit {
  enum class Kind { kGpt2, kDigitsGpt2, kSplit, kFalcon };
  enum class Flags { kNone, kNfc, kWholeWordsAndBos };

  std::string_view name;
  Kind kind;
  std::string_view pattern = "";
  Flags flags = Flags::kNone;

  IgnoreMerges ignore_merges() const {
    return flags == Flags::kWholeWordsAndBos ? IgnoreMerges::kYes : IgnoreMerges::kNo;
  }
};

/// Of names that stand for the same, the usual one comes first.
std::span<const GgufSplit> gguf_splits();
PipelineJson gguf_pipeline(const GgufSplit& split);

}  // namespace shardtune::data
