#include "data/sentencepiece.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "core/error.h"
#include "data/text_split.h"
#include "data/tokenizer_document.h"

namespace shardtune::data {
namespace {

/// Every split of a piece is looked up: pieces of published vocabularies have up to 100 bytes.
constexpr std::size_t kMaxPieceBytes = 256;

constexpr const char* kPrefixed =
    R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]})";
constexpr const char* kUnprefixed = R"({"type":"Replace","pattern":{"String":" "},"content":"▁"})";
constexpr const char* kDecoder =
    R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})";
constexpr const char* kDecoderUnprefixed =
    R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"}]})";

struct ScoredMerge {
  uint32_t rank;
  int32_t left;
  int32_t right;
};

/// Rank of each piece: the highest score is 0, equal scores share one.
std::vector<uint32_t> rank_scores(const SentencePieces& pieces) {
  std::vector<float> sorted(pieces.scores);
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  std::vector<uint32_t> ranks;
  ranks.reserve(pieces.scores.size());
  for (const float score : pieces.scores) {
    const auto at = std::lower_bound(sorted.begin(), sorted.end(), score, std::greater<>());
    ranks.push_back(static_cast<uint32_t>(at - sorted.begin()));
  }
  return ranks;
}

using PieceIndex = std::unordered_map<std::string_view, int32_t>;

void add_splits(const SentencePieces& pieces, const PieceIndex& index, std::size_t id,
                uint32_t rank, std::vector<ScoredMerge>& merges) {
  const std::string_view text = pieces.texts[id];
  for (std::size_t cut = 0;;) {
    cut += static_cast<std::size_t>(decode_code_point(text, cut).length);
    if (cut >= text.size())
      return;
    const auto left = index.find(text.substr(0, cut));
    if (left == index.end())
      continue;
    const auto right = index.find(text.substr(cut));
    if (right != index.end())
      merges.push_back({rank, left->second, right->second});
  }
}

void fill_merges(const SentencePieces& pieces, TokenizerSpec& spec) {
  PieceIndex index;
  for (std::size_t id = 0; id < pieces.texts.size(); ++id) {
    if (pieces.types[id] == PieceType::kNormal)
      index.emplace(pieces.texts[id], static_cast<int32_t>(id));
  }
  const std::vector<uint32_t> ranks = rank_scores(pieces);
  std::vector<ScoredMerge> merges;
  for (std::size_t id = 0; id < pieces.texts.size(); ++id) {
    if (pieces.types[id] == PieceType::kNormal)
      add_splits(pieces, index, id, ranks[id], merges);
  }
  // Within a rank as converters write them, so that a written tokenizer.json is the usual one.
  std::stable_sort(merges.begin(), merges.end(), [](const ScoredMerge& a, const ScoredMerge& b) {
    return std::tie(a.rank, a.left, a.right) < std::tie(b.rank, b.left, b.right);
  });
  for (const ScoredMerge& merge : merges) {
    spec.merges.emplace_back(pieces.texts[static_cast<std::size_t>(merge.left)],
                             pieces.texts[static_cast<std::size_t>(merge.right)]);
    spec.merge_ranks.push_back(merge.rank);
  }
}

void check(const SentencePieces& pieces, const std::string& where) {
  for (std::size_t id = 0; id < pieces.texts.size(); ++id) {
    const std::string& text = pieces.texts[id];
    const bool merges = pieces.types[id] == PieceType::kNormal;
    if (merges && (text.size() > kMaxPieceBytes || !std::isfinite(pieces.scores[id])))
      throw DataError(where + ": piece " + std::to_string(id) + ": expected at most " +
                      std::to_string(kMaxPieceBytes) + " bytes and a finite score, found " +
                      std::to_string(text.size()) + " bytes and score " +
                      std::to_string(pieces.scores[id]) + ". Fetch the file again.");
    if (pieces.types[id] == PieceType::kByte && byte_of_token_text(text) < 0)
      throw DataError(where + ": piece " + std::to_string(id) + ": expected a byte like <0x0A>, " +
                      "found '" + text.substr(0, 80) + "'. Fetch the file again.");
  }
}

}  // namespace

void fill_sentencepiece_spec(SentencePieces pieces, TokenizerSpec& spec) {
  check(pieces, spec.where);
  fill_merges(pieces, spec);
  spec.in_model.assign(pieces.texts.size(), 1);
  for (std::size_t id = 0; id < pieces.texts.size(); ++id) {
    const auto at = static_cast<int32_t>(id);
    const PieceType type = pieces.types[id];
    if (type == PieceType::kUnknown && !spec.unknown_id)
      spec.unknown_id = at;
    spec.byte_fallback = spec.byte_fallback || type == PieceType::kByte;
    if (type == PieceType::kControl || type == PieceType::kUserDefined ||
        type == PieceType::kUnknown) {
      AddedToken token;
      token.id = at;
      token.content = pieces.texts[id];
      token.special = type != PieceType::kUserDefined;
      spec.added.push_back(std::move(token));
    }
  }
  spec.texts = std::move(pieces.texts);
  spec.fuse_unknown = true;
  spec.pipeline = {pieces.add_dummy_prefix ? kPrefixed : kUnprefixed, "",
                   pieces.add_dummy_prefix ? kDecoder : kDecoderUnprefixed};
  apply_pipeline(spec.where, spec);
}

}  // namespace shardtune::data
