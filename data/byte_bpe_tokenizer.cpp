// The byte-level BPE tokenizer: added tokens, normaliser, splits, merges, ends - in the order of
// the reference (FORMATS 3.1).
#include <algorithm>

#include "core/error.h"
#include "data/bpe.h"
#include "data/tokenizer_spec.h"

namespace shardtune::data {
namespace {

using TokenIndex = std::unordered_map<std::string_view, int32_t>;

std::string in_quotes(std::string_view text) { return "'" + std::string(text.substr(0, 80)) + "'"; }

/// Texts to ids of the BPE vocabulary. DataError on a text that two ids have.
TokenIndex index_model_tokens(const TokenizerSpec& spec) {
  TokenIndex index;
  index.reserve(spec.texts.size());
  for (std::size_t id = 0; id < spec.texts.size(); ++id) {
    const std::string& text = spec.texts[id];
    if (!spec.in_model[id] || text.empty())
      continue;
    const auto [found, added] = index.emplace(text, static_cast<int32_t>(id));
    if (!added)
      throw DataError(spec.where + ": vocabulary: token " + in_quotes(text) + " stands at ids " +
                      std::to_string(found->second) + " and " + std::to_string(id) +
                      ". Fetch the file again.");
  }
  return index;
}

int32_t merge_part(const TokenizerSpec& spec, const TokenIndex& index, std::size_t at,
                   const std::string& text) {
  const auto found = index.find(text);
  if (found == index.end())
    throw DataError(spec.where + ": merges[" + std::to_string(at) + "]: expected tokens of the " +
                    "vocabulary, found " + in_quotes(text) + ". Use files of one model.");
  return found->second;
}

BpeMerger::Options merger_options(const TokenizerSpec& spec, const TokenIndex& index) {
  BpeMerger::Options options;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const auto value = static_cast<char>(byte);
    const auto found = index.find(token_text_of_bytes({&value, 1}));
    options.byte_ids[static_cast<std::size_t>(byte)] = found != index.end() ? found->second : -1;
  }
  options.merges.reserve(spec.merges.size());
  for (std::size_t i = 0; i < spec.merges.size(); ++i) {
    const auto& [left, right] = spec.merges[i];
    options.merges.push_back({merge_part(spec, index, i, left), merge_part(spec, index, i, right),
                              merge_part(spec, index, i, left + right)});
  }
  options.unknown_id = spec.unknown_id.value_or(-1);
  options.fuse_unknown = spec.fuse_unknown;
  return options;
}

std::vector<AddedToken> added_tokens_of(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken token : spec.added) {
    if (token.normalized != normalized)
      continue;
    if (normalized && spec.normalizer == Normalizer::kNfc)
      token.content = normalize_nfc(token.content);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

void check_ids(const TokenizerSpec& spec) {
  const auto check = [&](std::string_view what, int32_t id) {
    if (id < 0 || id >= static_cast<int64_t>(spec.texts.size()))
      throw DataError(spec.where + ": " + std::string(what) + ": expected an id below " +
                      std::to_string(spec.texts.size()) + " (the vocabulary), found " +
                      std::to_string(id) + ". Use files of one model.");
  };
  for (const AddedToken& token : spec.added)
    check("added_tokens", token.id);
  for (const int32_t id : spec.prefix_ids)
    check("beginning token", id);
  for (const int32_t id : spec.suffix_ids)
    check("end token", id);
  for (const int32_t id : spec.stop_ids)
    check("stop token", id);
  const std::pair<std::string_view, const std::optional<int32_t>*> named[] = {
      {"bos token", &spec.bos},
      {"eos token", &spec.eos},
      {"padding token", &spec.pad},
      {"unknown token", &spec.unknown_id}};
  for (const auto& [what, id] : named) {
    if (*id)
      check(what, **id);
  }
}

class ByteBpeTokenizer : public Tokenizer {
 public:
  explicit ByteBpeTokenizer(TokenizerSpec spec)
      : spec_(std::move(spec)),
        model_index_((check_ids(spec_), index_model_tokens(spec_))),
        merger_(merger_options(spec_, model_index_)),
        raw_added_(added_tokens_of(spec_, false)),
        normalized_added_(added_tokens_of(spec_, true)) {
    has_normalized_added_ = std::any_of(spec_.added.begin(), spec_.added.end(),
                                        [](const AddedToken& token) { return token.normalized; });
    special_.resize(spec_.texts.size(), 0);
    bytes_.reserve(spec_.texts.size());
    for (const std::string& text : spec_.texts)
      bytes_.push_back(bytes_of_token_text(text).value_or(text));
    for (const AddedToken& token : spec_.added) {
      added_index_.emplace(token.content, token.id);
      if (token.special)
        special_[static_cast<std::size_t>(token.id)] = 1;
    }
    if (spec_.ignore_merges == IgnoreMerges::kYes) {
      for (const auto& [text, id] : model_index_) {
        if (const auto bytes = bytes_of_token_text(text))
          whole_pieces_.emplace(*bytes, id);
      }
    }
    if (!spec_.tokenizer_json.empty())
      spec_.merges = {};
    if (spec_.eos)
      stop_ids_.push_back(*spec_.eos);
    stop_ids_.insert(stop_ids_.end(), spec_.stop_ids.begin(), spec_.stop_ids.end());
    std::sort(stop_ids_.begin(), stop_ids_.end());
    stop_ids_.erase(std::unique(stop_ids_.begin(), stop_ids_.end()), stop_ids_.end());
  }

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    const bool ends = options.ends == AddedEnds::kAsTokenizer;
    std::vector<int32_t> ids;
    if (ends)
      ids = spec_.prefix_ids;
    std::vector<PlainRange> plain;
    if (options.special == SpecialTokens::kPlain)
      plain.push_back({0, text.size()});
    encode_marked(text, plain, ids);
    if (ends)
      ids.insert(ids.end(), spec_.suffix_ids.begin(), spec_.suffix_ids.end());
    return ids;
  }

  std::vector<int32_t> encode_parts(const std::vector<EncodePart>& parts) const override {
    std::string text;
    std::vector<PlainRange> plain;
    for (const EncodePart& part : parts) {
      if (part.special == SpecialTokens::kPlain && !part.text.empty())
        plain.push_back({text.size(), text.size() + part.text.size()});
      text += part.text;
    }
    std::vector<int32_t> ids;
    encode_marked(text, plain, ids);
    return ids;
  }

  std::string decode(const std::vector<int32_t>& ids, const DecodeOptions& options) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      const std::size_t index = checked_id(id);
      if (!(options.skip_special && special_[index]))
        bytes += bytes_[index];
    }
    return replace_invalid_utf8(bytes);
  }

  std::string token_bytes(int32_t id) const override { return bytes_[checked_id(id)]; }

  int64_t vocab_size() const override { return static_cast<int64_t>(spec_.texts.size()); }
  std::optional<int32_t> token_id(std::string_view token) const override {
    if (const auto added = added_index_.find(token); added != added_index_.end())
      return added->second;
    const auto found = model_index_.find(token);
    return found != model_index_.end() ? std::optional(found->second) : std::nullopt;
  }
  bool is_special(int32_t id) const override { return special_[checked_id(id)] != 0; }
  std::optional<int32_t> bos_id() const override { return spec_.bos; }
  std::optional<int32_t> eos_id() const override { return spec_.eos; }
  std::optional<int32_t> pad_id() const override { return spec_.pad; }
  std::vector<int32_t> stop_ids() const override { return stop_ids_; }
  const std::string& chat_template_text() const override { return spec_.chat_template; }
  std::string tokenizer_json() const override {
    return spec_.tokenizer_json.empty() ? write_tokenizer_json(spec_) : spec_.tokenizer_json;
  }
  std::string tokenizer_config_json() const override { return spec_.tokenizer_config_json; }

 private:
  struct Words {
    PieceCache& cache;
    SpecialTokens special;  // kPlain: some of the text is plain
  };

  std::size_t checked_id(int32_t id) const {
    if (id < 0 || id >= vocab_size())
      throw DataError(spec_.where + ": token id: expected 0 to " +
                      std::to_string(vocab_size() - 1) + ", found " + std::to_string(id) +
                      ". Use ids of this model's tokenizer.");
    return static_cast<std::size_t>(id);
  }

  void encode_marked(std::string_view text, std::span<const PlainRange> plain,
                     std::vector<int32_t>& ids) const {
    PieceCachePool::Lease cache(caches_);
    const Words words{*cache, plain.empty() ? SpecialTokens::kParse : SpecialTokens::kPlain};
    for (const TextPart& part : raw_added_.split(text, plain)) {
      if (part.token != nullptr)
        ids.push_back(part.token->id);
      else
        encode_between(text, part, plain, words, ids);
    }
  }

  void encode_between(std::string_view whole, const TextPart& span,
                      std::span<const PlainRange> plain, const Words& words,
                      std::vector<int32_t>& ids) const {
    std::string normalized;
    std::string_view text = whole.substr(span.begin, span.end - span.begin);
    if (!has_normalized_added_ && spec_.normalizer == Normalizer::kNone) {
      encode_plain(text, words, ids);
      return;
    }
    std::vector<PlainRange> inside;
    auto range = std::lower_bound(
        plain.begin(), plain.end(), span.begin,
        [](const PlainRange& candidate, std::size_t begin) { return candidate.end <= begin; });
    for (; range != plain.end() && range->begin < span.end; ++range)
      inside.push_back({std::max(range->begin, span.begin) - span.begin,
                        std::min(range->end, span.end) - span.begin});
    if (spec_.normalizer == Normalizer::kNfc) {
      normalized = normalize_nfc(text);
      text = normalized;
      // Offsets have moved: be on the safe side with all of it.
      if (!inside.empty())
        inside = {{0, text.size()}};
    }
    for (const TextPart& part : normalized_added_.split(text, inside)) {
      if (part.token != nullptr)
        ids.push_back(part.token->id);
      else
        encode_plain(text.substr(part.begin, part.end - part.begin), words, ids);
    }
  }

  void encode_plain(std::string_view text, const Words& words, std::vector<int32_t>& ids) const {
    std::string prefixed;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = digit_part_end(text, begin, spec_.digits);
      std::string_view part = text.substr(begin, end - begin);
      if (spec_.prefix_space == PrefixSpace::kAdd && part.front() != ' ') {
        prefixed.assign(1, ' ').append(part);
        part = prefixed;
      }
      for (std::size_t at = 0; at < part.size();) {
        const std::size_t piece_end =
            spec_.split == PieceSplit::kGpt2 ? gpt2_piece_end(part, at) : part.size();
        encode_piece(part.substr(at, piece_end - at), words, ids);
        at = piece_end;
      }
      begin = end;
    }
  }

  void encode_piece(std::string_view piece, const Words& words, std::vector<int32_t>& ids) const {
    if (spec_.ignore_merges == IgnoreMerges::kYes) {
      const auto found = whole_pieces_.find(std::string(piece));
      // Plain text never yields a special token, even where one is spelled out as a whole piece.
      if (found != whole_pieces_.end() && !(words.special == SpecialTokens::kPlain &&
                                            special_[static_cast<std::size_t>(found->second)])) {
        ids.push_back(found->second);
        return;
      }
    }
    if (piece.size() > PieceCache::kMaxBytes) {
      merger_.encode(piece, ids);
      return;
    }
    if (words.cache.lookup(piece, ids))
      return;
    const std::size_t first = ids.size();
    merger_.encode(piece, ids);
    words.cache.remember(piece, ids, first);
  }

  TokenizerSpec spec_;
  TokenIndex model_index_;
  BpeMerger merger_;
  AddedTokenMatcher raw_added_;
  AddedTokenMatcher normalized_added_;
  bool has_normalized_added_ = false;
  std::vector<std::string> bytes_;
  std::vector<uint8_t> special_;
  std::unordered_map<std::string_view, int32_t> added_index_;
  std::unordered_map<std::string, int32_t> whole_pieces_;
  std::vector<int32_t> stop_ids_;
  mutable PieceCachePool caches_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_bpe_tokenizer(TokenizerSpec spec) {
  return std::make_unique<ByteBpeTokenizer>(std::move(spec));
}

void add_end_of_turn_tokens(TokenizerSpec& spec) {
  for (const AddedToken& token : spec.added) {
    for (const std::string_view name : {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"}) {
      if (token.special && token.content == name)
        spec.stop_ids.push_back(token.id);
    }
  }
}

}  // namespace shardtune::data
