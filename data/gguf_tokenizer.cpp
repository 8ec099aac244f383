#include "data/gguf_tokenizer.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "core/error.h"
#include "data/gguf_splits.h"
#include "data/sentencepiece.h"
#include "data/tokenizer_document.h"
#include "data/tokenizer_json.h"

namespace shardtune::data {
namespace {

// llama.cpp's token types are those of SentencePiece.

constexpr const char* kMark = "\xE2\x96\x81";  // a space, in SentencePiece's texts
constexpr float kScoreOfUnused = -1e6f;

[[noreturn]] void refuse(const std::string& what) {
  throw UnsupportedError("GGUF: " + what +
                         " of this tokenizer has no form that llama.cpp reads. Use --to hf, which "
                         "keeps the tokenizer as it is.");
}

/// Whether two pre_tokenizers are the same row of our own splitters.
bool is_same_split(const std::vector<SplitStep>& a, const std::vector<SplitStep>& b) {
  return std::ranges::equal(a, b, [](const SplitStep& x, const SplitStep& y) {
    return x.piece_end != nullptr && x.piece_end == y.piece_end;
  });
}

std::string_view split_name(const TokenizerSpec& spec) {
  const bool has_nfc =
      spec.normalizer.size() == 1 && spec.normalizer[0].kind == NormalizeStep::Kind::kNfc;
  if (!spec.normalizer.empty() && !has_nfc)
    refuse("the normalizer");
  for (const GgufSplit& split : gguf_splits()) {
    TokenizerSpec known;
    known.pipeline = gguf_pipeline(split);
    apply_pipeline("GGUF", known);
    const bool is_same = known.normalizer.size() == spec.normalizer.size() &&
                         split.ignore_merges() == spec.ignore_merges &&
                         is_same_split(known.steps, spec.steps);
    if (is_same)
      return split.name;
  }
  refuse("the pre_tokenizer (with its normalizer and ignore_merges)");
}

/// Tokens by row of the embedding, with llama.cpp's type of each.
struct Rows {
  std::vector<std::string> texts;
  std::vector<int32_t> types;
};

Rows rows_of(const TokenizerSpec& spec, int64_t num_rows) {
  const auto count = static_cast<std::size_t>(num_rows);
  if (spec.texts.size() > count)
    throw UnsupportedError("GGUF: the tokenizer has " + std::to_string(spec.texts.size()) +
                           " ids and the embedding " + std::to_string(count) +
                           " rows. Use the tokenizer of this model.");
  Rows rows{spec.texts, std::vector<int32_t>(count, static_cast<int32_t>(PieceType::kNormal))};
  rows.texts.resize(count);
  const auto set_type = [&](std::size_t id, PieceType type) {
    rows.types[id] = static_cast<int32_t>(type);
  };
  for (std::size_t id = 0; id < count; ++id) {
    if (rows.texts[id].empty()) {
      rows.texts[id] = "[PAD" + std::to_string(id) + "]";
      set_type(id, PieceType::kUnused);
    } else if (spec.byte_fallback && byte_of_token_text(rows.texts[id]) >= 0) {
      set_type(id, PieceType::kByte);
    }
  }
  for (const AddedToken& token : spec.added) {
    if (token.lstrip || token.rstrip || token.single_word)
      refuse("the added token '" + token.content + "', which takes white space or whole words");
    set_type(static_cast<std::size_t>(token.id),
             token.special ? PieceType::kControl : PieceType::kUserDefined);
  }
  if (spec.unknown_id && spec.alphabet == TokenAlphabet::kText)
    set_type(static_cast<std::size_t>(*spec.unknown_id), PieceType::kUnknown);
  return rows;
}

void add_rows(Rows rows, std::vector<io::GgufPair>& pairs) {
  pairs.push_back(io::gguf_strings("tokenizer.ggml.tokens", rows.texts));
  pairs.push_back(io::gguf_int32s("tokenizer.ggml.token_type", rows.types));
}

void add_byte_level(const TokenizerSpec& spec, int64_t num_rows, std::vector<io::GgufPair>& pairs) {
  pairs.push_back(io::gguf_string("tokenizer.ggml.model", "gpt2"));
  pairs.push_back(io::gguf_string("tokenizer.ggml.pre", split_name(spec)));
  add_rows(rows_of(spec, num_rows), pairs);
  std::vector<std::string> merges;
  merges.reserve(spec.merges.size());
  for (const auto& [left, right] : spec.merges)
    merges.push_back(left + " " + right);
  pairs.push_back(io::gguf_strings("tokenizer.ggml.merges", merges));
  pairs.push_back(io::gguf_bool("tokenizer.ggml.add_space_prefix", false));
}

/// Whether a space is put before each text; refused where llama.cpp knows no such rule.
bool has_space_prefix(const TokenizerSpec& spec) {
  const auto is_replace = [](const NormalizeStep& step) {
    return step.kind == NormalizeStep::Kind::kReplace && step.from == " " && step.to == kMark;
  };
  const auto is_prepend = [](const NormalizeStep& step) {
    return step.kind == NormalizeStep::Kind::kPrepend && step.to == kMark;
  };
  const auto& steps = spec.normalizer;
  if (spec.steps.empty() && steps.size() == 1 && is_replace(steps[0]))
    return false;
  if (spec.steps.empty() && steps.size() == 2 && is_prepend(steps[0]) && is_replace(steps[1]))
    return true;
  const Metaspace* space = spec.steps.size() == 1 ? spec.steps[0].metaspace.get() : nullptr;
  if (steps.empty() && space != nullptr && space->replacement == kMark) {
    if (space->prepend == Metaspace::Prepend::kFirst)
      refuse("Metaspace with prepend_scheme 'first' (a space before the first text alone)");
    return space->prepend == Metaspace::Prepend::kAlways;
  }
  refuse("the normalizer or pre_tokenizer");
}

/// By piece, the place of its merges in the file's order. Pieces whose merges lie mixed had one
/// score, as runs of spaces have, and share the place of the first.
std::unordered_map<std::string, std::size_t> merge_places(const TokenizerSpec& spec) {
  std::unordered_map<std::string, std::size_t> last;
  for (std::size_t i = 0; i < spec.merges.size(); ++i)
    last[spec.merges[i].first + spec.merges[i].second] = i;
  std::unordered_map<std::string, std::size_t> places;
  std::size_t group_begin = 0, group_end = 0;
  for (std::size_t i = 0; i < spec.merges.size(); ++i) {
    const std::string piece = spec.merges[i].first + spec.merges[i].second;
    if (i > group_end)
      group_begin = i;
    group_end = std::max(group_end, last[piece]);
    places.emplace(piece, group_begin);
  }
  return places;
}

/// The pieces with scores such that merging by the highest score is merging in the file's order.
SentencePieces scored_pieces(const TokenizerSpec& spec, const Rows& rows) {
  const auto places = merge_places(spec);
  SentencePieces pieces;
  pieces.texts = rows.texts;
  for (std::size_t id = 0; id < rows.texts.size(); ++id) {
    pieces.types.push_back(static_cast<PieceType>(rows.types[id]));
    const auto found = places.find(rows.texts[id]);
    pieces.scores.push_back(found == places.end() ? kScoreOfUnused
                                                  : -static_cast<float>(found->second));
  }
  // llama.cpp merges whatever makes a piece: that has to be what the file lists.
  TokenizerSpec scored;
  fill_sentencepiece_spec(pieces, scored);
  std::set<std::pair<std::string, std::string>> expected(spec.merges.begin(), spec.merges.end());
  std::set<std::pair<std::string, std::string>> found(scored.merges.begin(), scored.merges.end());
  if (expected != found)
    refuse("a list of merges that leaves out some way to make a piece");
  return pieces;
}

void add_sentencepiece(const TokenizerSpec& spec, int64_t num_rows,
                       std::vector<io::GgufPair>& pairs) {
  const Rows rows = rows_of(spec, num_rows);
  const auto num_bytes = std::ranges::count(rows.types, static_cast<int32_t>(PieceType::kByte));
  if (num_bytes != 256 || spec.ignore_merges == IgnoreMerges::kYes)
    refuse("a vocabulary without a token for each byte, or with ignore_merges,");
  const bool prefix = has_space_prefix(spec);
  const SentencePieces pieces = scored_pieces(spec, rows);
  pairs.push_back(io::gguf_string("tokenizer.ggml.model", "llama"));
  pairs.push_back(io::gguf_string("tokenizer.ggml.pre", "default"));
  add_rows(rows, pairs);
  pairs.push_back(io::gguf_float32s("tokenizer.ggml.scores", pieces.scores));
  pairs.push_back(io::gguf_bool("tokenizer.ggml.add_space_prefix", prefix));
}

/// Beginning, end and padding, and whether the tokenizer adds them to a text itself.
void add_ends(const Tokenizer& tokenizer, const TokenizerSpec& spec,
              std::vector<io::GgufPair>& pairs) {
  const auto add_id = [&](const char* key, std::optional<int32_t> id) {
    if (id)
      pairs.push_back(io::gguf_uint32(key, static_cast<uint32_t>(*id)));
  };
  if (!tokenizer.eos_id())  // llama.cpp would take another token for it
    refuse("the missing end token");
  add_id("tokenizer.ggml.bos_token_id", tokenizer.bos_id());
  add_id("tokenizer.ggml.eos_token_id", tokenizer.eos_id());
  add_id("tokenizer.ggml.padding_token_id", tokenizer.pad_id());
  if (spec.alphabet == TokenAlphabet::kText)
    add_id("tokenizer.ggml.unknown_token_id", spec.unknown_id);
  const auto stops = tokenizer.stop_ids();
  const auto other =
      std::ranges::find_if(stops, [&](int32_t id) { return id != tokenizer.eos_id(); });
  if (other != stops.end())
    add_id("tokenizer.ggml.eot_token_id", *other);
  // What is added to any text is seen on an empty one; GGUF says no more than yes or no.
  const std::vector<int32_t> ends = tokenizer.encode("", {});
  const bool adds_bos = tokenizer.bos_id() && !ends.empty() && ends.front() == *tokenizer.bos_id();
  const bool adds_eos = ends.size() > (adds_bos ? 1u : 0u) && ends.back() == *tokenizer.eos_id();
  if (ends.size() != static_cast<std::size_t>(adds_bos) + static_cast<std::size_t>(adds_eos))
    refuse("a post_processor that adds other tokens than beginning and end");
  pairs.push_back(io::gguf_bool("tokenizer.ggml.add_bos_token", adds_bos));
  pairs.push_back(io::gguf_bool("tokenizer.ggml.add_eos_token", adds_eos));
}

}  // namespace

std::vector<io::GgufPair> gguf_tokenizer(const Tokenizer& tokenizer, int64_t num_rows) {
  const TokenizerSpec spec = parse_tokenizer_json(tokenizer.tokenizer_json(), "tokenizer.json");
  std::vector<io::GgufPair> pairs;
  if (spec.alphabet == TokenAlphabet::kByteLevel)
    add_byte_level(spec, num_rows, pairs);
  else
    add_sentencepiece(spec, num_rows, pairs);
  add_ends(tokenizer, spec, pairs);
  if (!tokenizer.chat_template_text().empty())
    pairs.push_back(io::gguf_string("tokenizer.chat_template", tokenizer.chat_template_text()));
  return pairs;
}

void check_same_tokenizer(const Tokenizer& expected, const Tokenizer& found) {
  std::vector<std::string> texts = {
      "",
      "The capital of France is Paris.",
      "  In 2024,\tit had 135M (or 12345678) parameters.\r\n\n  x = [1, 2];",
      " it's na\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xF0\x9F\x98\x80 ",
  };
  for (std::size_t count = 1; count < 40; ++count)  // merges of equal score
    texts.push_back("a" + std::string(count, ' ') + "b");
  // A token whose text is looked for after normalisation may not be found inside a text at all.
  for (const int32_t id : expected.stop_ids()) {
    const std::string text = "ab" + expected.decode({id}, {}) + "cd  1";
    const std::vector<int32_t> ids = expected.encode(text, {});
    if (std::ranges::find(ids, id) != ids.end())
      texts.push_back(text);
  }
  for (const std::string& text : texts) {
    if (expected.encode(text, {}) != found.encode(text, {}))
      refuse("something that shows in the text " + io::Json(text).dump());
  }
  if (expected.bos_id() != found.bos_id() || expected.eos_id() != found.eos_id() ||
      expected.pad_id() != found.pad_id() ||
      expected.chat_template_text() != found.chat_template_text())
    refuse("a beginning, end or padding token, or the template,");
}

}  // namespace shardtune::data
