#include "data/gguf_splits.h"

#include <initializer_list>

#include "io/json.h"

namespace shardtune::data {
namespace {

using Kind = GgufSplit::Kind;
using Flags = GgufSplit::Flags;

constexpr std::string_view kByteLevel =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
constexpr std::string_view kWholeByteLevel =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false})";
constexpr std::string_view kSingleDigits = R"({"type":"Digits","individual_digits":true})";
constexpr std::string_view kNfc = R"({"type":"NFC"})";

constexpr std::string_view kLlama3 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kQwen2 =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kTekken =
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kBloom = R"re( ?[^(\s|[.,!?…。，、।۔،])]+)re";

constexpr GgufSplit kSplits[] = {{"gpt-2", Kind::kGpt2},
                                 {"phi-2", Kind::kGpt2},
                                 {"mpt", Kind::kGpt2},
                                 {"olmo", Kind::kGpt2},
                                 {"jais", Kind::kGpt2},
                                 {"trillion", Kind::kGpt2},
                                 {"smollm", Kind::kDigitsGpt2},
                                 {"starcoder", Kind::kDigitsGpt2},
                                 {"refact", Kind::kDigitsGpt2},
                                 {"command-r", Kind::kDigitsGpt2},
                                 {"codeshell", Kind::kDigitsGpt2},
                                 {"exaone", Kind::kDigitsGpt2},
                                 {"minerva-7b", Kind::kDigitsGpt2},
                                 {"llama-bpe", Kind::kSplit, kLlama3, Flags::kWholeWordsAndBos},
                                 {"llama3", Kind::kSplit, kLlama3, Flags::kWholeWordsAndBos},
                                 {"llama-v3", Kind::kSplit, kLlama3, Flags::kWholeWordsAndBos},
                                 {"qwen2", Kind::kSplit, kQwen2, Flags::kNfc},
                                 {"deepseek-r1-qwen", Kind::kSplit, kQwen2, Flags::kNfc},
                                 {"tekken", Kind::kSplit, kTekken, Flags::kWholeWordsAndBos},
                                 {"bloom", Kind::kSplit, kBloom},
                                 {"falcon", Kind::kFalcon}};

std::string sequence(std::initializer_list<std::string_view> steps) {
  std::string text = R"({"type":"Sequence","pretokenizers":[)";
  for (const std::string_view step : steps)
    text.append(text.ends_with('[') ? "" : ",").append(step);
  return text + "]}";
}

std::string split_step(std::string_view pattern) {
  return R"({"type":"Split","pattern":{"Regex":)" + io::Json(pattern).dump() +
         R"(},"behavior":"Isolated","invert":false})";
}

std::string pre_tokenizer_of(const GgufSplit& pre) {
  switch (pre.kind) {
    case Kind::kGpt2:
      return std::string(kByteLevel);
    case Kind::kDigitsGpt2:
      return sequence({kSingleDigits, kByteLevel});
    case Kind::kSplit:
      return sequence({split_step(pre.pattern), kWholeByteLevel});
    case Kind::kFalcon:
      return sequence({R"({"type":"Punctuation","behavior":"Contiguous"})", kByteLevel,
                       split_step("[0-9][0-9][0-9]")});
  }
  return "";
}

}  // namespace

std::span<const GgufSplit> gguf_splits() { return kSplits; }

PipelineJson gguf_pipeline(const GgufSplit& split) {
  return {std::string(split.flags == Flags::kNfc ? kNfc : ""), pre_tokenizer_of(split),
          std::string(kByteLevel)};
}

}  // namespace shardtune::data
