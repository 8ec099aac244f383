// The BPE tokenizer: added tokens, normaliser, splits, merges, ends - in the order of the reference
// (FORMATS 3.1).
#include <algorithm>

#include "core/error.h"
#include "data/bpe.h"
#include "data/first_symbols.h"
#include "data/text_split.h"
#include "data/tokenizer_spec.h"

namespace shardtune::data {
namespace {

using TokenIndex = std::unordered_map<std::string_view, int32_t>;

/// Lets a map of strings be asked with views.
struct TextHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const {
    return std::hash<std::string_view>()(text);
  }
};

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

std::vector<BpeMerge> merges_of(const TokenizerSpec& spec, const TokenIndex& index) {
  std::vector<BpeMerge> merges;
  merges.reserve(spec.merges.size());
  for (std::size_t i = 0; i < spec.merges.size(); ++i) {
    const auto& [left, right] = spec.merges[i];
    const auto rank = spec.merge_ranks.empty() ? static_cast<uint32_t>(i) : spec.merge_ranks[i];
    merges.push_back({merge_part(spec, index, i, left), merge_part(spec, index, i, right),
                      merge_part(spec, index, i, left + right), rank});
  }
  return merges;
}

/// "<0xHH>".
std::string byte_token_text(int32_t byte) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return {'<',
          '0',
          'x',
          kDigits[static_cast<std::size_t>(byte / 16)],
          kDigits[static_cast<std::size_t>(byte % 16)],
          '>'};
}

FirstSymbols first_symbols_of(const TokenizerSpec& spec, const TokenIndex& index) {
  FirstSymbols::Options options;
  options.alphabet = spec.alphabet;
  options.byte_ids.fill(-1);
  const bool byte_level = spec.alphabet == TokenAlphabet::kByteLevel;
  for (int32_t byte = 0; (byte_level || spec.byte_fallback) && byte < 256; ++byte) {
    const auto value = static_cast<char>(byte);
    const auto found =
        index.find(byte_level ? token_text_of_bytes({&value, 1}) : byte_token_text(byte));
    if (found != index.end())
      options.byte_ids[static_cast<std::size_t>(byte)] = found->second;
  }
  for (const auto& [text, id] : index) {
    if (byte_level || text.size() > 4)
      continue;
    const CodePoint point = decode_code_point(text, 0);
    if (point.value >= 0 && static_cast<std::size_t>(point.length) == text.size())
      options.character_ids.emplace(point.value, id);
  }
  options.unknown_id = spec.unknown_id.value_or(-1);
  options.fuse_unknown = spec.fuse_unknown;
  return FirstSymbols(std::move(options));
}

constexpr int32_t kSpaceMarkPoint = 0x2581;

/// Whether no merge spans the place before a space mark that follows something else: a text may be
/// cut there, and words be merged one by one.
bool merges_stay_in_words(const TokenizerSpec& spec) {
  return std::all_of(spec.merges.begin(), spec.merges.end(), [](const auto& merge) {
    const std::string text = merge.first + merge.second;
    return metaspace_word_end(text, 0) == text.size();
  });
}

std::vector<AddedToken> added_tokens_of(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> tokens;
  for (AddedToken token : spec.added) {
    if (token.normalized != normalized)
      continue;
    if (normalized)
      token.content = normalize(spec.normalizer, token.content, TextStart::kOfInput);
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

class PieceReader : public SymbolReader {
 public:
  PieceReader(const FirstSymbols& symbols, std::string_view piece)
      : symbols_(symbols), piece_(piece) {}
  void restart() override { at_ = {}; }
  bool read(std::size_t count, std::vector<int32_t>& symbols) override {
    if (at_.offset >= piece_.size())
      return false;
    symbols_.append_some(piece_, count, at_, symbols);
    return true;
  }

 private:
  const FirstSymbols& symbols_;
  std::string_view piece_;
  FirstSymbols::Cursor at_;
};

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(TokenizerSpec spec)
      : spec_(std::move(spec)),
        model_index_((check_ids(spec_), index_model_tokens(spec_))),
        merger_(merges_of(spec_, model_index_)),
        symbols_(first_symbols_of(spec_, model_index_)),
        decoder_(spec_.texts, spec_.decoder),
        raw_added_(added_tokens_of(spec_, false)),
        normalized_added_(added_tokens_of(spec_, true)) {
    has_normalized_added_ = std::any_of(spec_.added.begin(), spec_.added.end(),
                                        [](const AddedToken& token) { return token.normalized; });
    special_.resize(spec_.texts.size(), 0);
    for (const AddedToken& token : spec_.added) {
      added_index_.emplace(token.content, token.id);
      if (token.special)
        special_[static_cast<std::size_t>(token.id)] = 1;
    }
    const bool whole_first = spec_.ignore_merges == IgnoreMerges::kYes;
    if (whole_first) {
      for (const auto& [text, id] : model_index_) {
        if (spec_.alphabet == TokenAlphabet::kText)
          whole_pieces_.emplace(text, id);
        else if (const auto bytes = bytes_of_token_text(text))
          whole_pieces_.emplace(*bytes, id);
      }
    }
    if (spec_.alphabet == TokenAlphabet::kText && !whole_first && merges_stay_in_words(spec_) &&
        symbols_.has_character(kSpaceMarkPoint)) {
      SplitStep words;
      words.piece_end = &metaspace_word_end;
      spec_.steps.push_back(std::move(words));
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
    encode_marked(text, plain, TextStart::kOfInput, ids);
    if (ends)
      ids.insert(ids.end(), spec_.suffix_ids.begin(), spec_.suffix_ids.end());
    return ids;
  }

  std::vector<int32_t> encode_parts(const std::vector<EncodePart>& parts,
                                    TextStart start) const override {
    std::string text;
    std::vector<PlainRange> plain;
    for (const EncodePart& part : parts) {
      if (part.special == SpecialTokens::kPlain && !part.text.empty())
        plain.push_back({text.size(), text.size() + part.text.size()});
      text += part.text;
    }
    std::vector<int32_t> ids;
    encode_marked(text, plain, start, ids);
    return ids;
  }

  std::string decode(const std::vector<int32_t>& ids, const DecodeOptions& options) const override {
    std::vector<int32_t> kept;
    kept.reserve(ids.size());
    for (const int32_t id : ids) {
      const std::size_t index = checked_id(id);
      if (!(options.skip_special && special_[index]))
        kept.push_back(id);
    }
    return decoder_.decode(kept);
  }

  std::string token_bytes(int32_t id) const override { return decoder_.bytes(checked_id(id)); }

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
    SpecialTokens special;          // kPlain: some of the text is plain
    std::vector<int32_t>& symbols;  // scratch
  };

  std::size_t checked_id(int32_t id) const {
    if (id < 0 || id >= vocab_size())
      throw DataError(spec_.where + ": token id: expected 0 to " +
                      std::to_string(vocab_size() - 1) + ", found " + std::to_string(id) +
                      ". Use ids of this model's tokenizer.");
    return static_cast<std::size_t>(id);
  }

  void encode_marked(std::string_view text, std::span<const PlainRange> plain, TextStart start,
                     std::vector<int32_t>& ids) const {
    PieceCachePool::Lease cache(caches_);
    // Of a long text one piece of address space, of which only what is filled becomes memory: every
    // time a vector grows, all of its pages are new ones.
    constexpr std::size_t kLongText = 1 << 20;
    constexpr std::size_t kMoreTokens = 256;  // than bytes: ends, prefixes
    if (text.size() >= kLongText)
      ids.reserve(ids.size() + text.size() + kMoreTokens);
    std::vector<int32_t> symbols;
    const Words words{*cache, plain.empty() ? SpecialTokens::kParse : SpecialTokens::kPlain,
                      symbols};
    for (const TextPart& part : raw_added_.split(text, plain)) {
      if (part.token != nullptr)
        ids.push_back(part.token->id);
      else
        encode_between(text, part, plain, part.begin == 0 ? start : TextStart::kAfterToken, words,
                       ids);
    }
  }

  void encode_between(std::string_view whole, const TextPart& span,
                      std::span<const PlainRange> plain, TextStart start, const Words& words,
                      std::vector<int32_t>& ids) const {
    std::string normalized;
    std::string_view text = whole.substr(span.begin, span.end - span.begin);
    if (!spec_.normalizer.empty()) {
      normalized = normalize(spec_.normalizer, text, start);
      text = normalized;
    }
    if (!has_normalized_added_) {
      run_step(0, text, start, words, ids);
      return;
    }
    std::vector<PlainRange> inside;
    auto range = std::lower_bound(
        plain.begin(), plain.end(), span.begin,
        [](const PlainRange& candidate, std::size_t begin) { return candidate.end <= begin; });
    for (; range != plain.end() && range->begin < span.end; ++range)
      inside.push_back({std::max(range->begin, span.begin) - span.begin,
                        std::min(range->end, span.end) - span.begin});
    // Offsets have moved under a normaliser: be on the safe side with all of it.
    if (!spec_.normalizer.empty() && !inside.empty())
      inside = {{0, text.size()}};
    for (const TextPart& part : normalized_added_.split(text, inside)) {
      if (part.token != nullptr)
        ids.push_back(part.token->id);
      else
        run_step(0, text.substr(part.begin, part.end - part.begin),
                 part.begin == 0 ? start : TextStart::kAfterToken, words, ids);
    }
  }

  /// Cuts the text by step `at` and hands the pieces to the next one. As many calls deep as there
  /// are steps, which the reader of the file bounds.
  void run_step(std::size_t at, std::string_view text, TextStart start, const Words& words,
                std::vector<int32_t>& ids) const {
    if (at == spec_.steps.size()) {
      encode_piece(text, words, ids);
      return;
    }
    const SplitStep& step = spec_.steps[at];
    if (step.piece_end != nullptr) {
      for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = step.piece_end(text, begin);
        SHARDTUNE_ASSERT(end > begin);
        run_step(at + 1, text.substr(begin, end - begin), begin == 0 ? start : TextStart::kInside,
                 words, ids);
        begin = end;
      }
    } else if (step.pattern != nullptr) {
      for (const std::string_view piece : step.pattern->split(text)) {
        const bool first = piece.data() == text.data();
        run_step(at + 1, piece, first ? start : TextStart::kInside, words, ids);
      }
    } else if (step.metaspace != nullptr) {
      run_step(at + 1, step.metaspace->apply(text, start), start, words, ids);
    } else if (step.prefix_space && !text.empty() && text.front() != ' ') {
      run_step(at + 1, ' ' + std::string(text), start, words, ids);
    } else {
      run_step(at + 1, text, start, words, ids);
    }
  }

  void encode_piece(std::string_view piece, const Words& words, std::vector<int32_t>& ids) const {
    if (spec_.ignore_merges == IgnoreMerges::kYes) {
      const auto found = whole_pieces_.find(piece);
      // Plain text never yields a special token, even where one is spelled out as a whole piece.
      if (found != whole_pieces_.end() && !(words.special == SpecialTokens::kPlain &&
                                            special_[static_cast<std::size_t>(found->second)])) {
        ids.push_back(found->second);
        return;
      }
    }
    const bool cached = piece.size() <= PieceCache::kMaxBytes;
    if (cached && words.cache.lookup(piece, ids))
      return;
    std::vector<int32_t>& symbols = words.symbols;
    if (piece.size() > BpeMerger::kLongPiece) {
      PieceReader reader(symbols_, piece);
      merger_.merge_long(reader, symbols, ids);
      return;
    }
    symbols.clear();
    symbols_.append(piece, symbols);
    merger_.merge(symbols);
    const std::size_t first = ids.size();
    ids.insert(ids.end(), symbols.begin(), symbols.end());
    if (cached)
      words.cache.remember(piece, ids, first);
  }

  TokenizerSpec spec_;
  TokenIndex model_index_;
  BpeMerger merger_;
  FirstSymbols symbols_;
  TokenDecoder decoder_;
  AddedTokenMatcher raw_added_;
  AddedTokenMatcher normalized_added_;
  bool has_normalized_added_ = false;
  std::vector<uint8_t> special_;
  std::unordered_map<std::string_view, int32_t> added_index_;
  std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>> whole_pieces_;
  std::vector<int32_t> stop_ids_;
  mutable PieceCachePool caches_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(TokenizerSpec spec) {
  return std::make_unique<BpeTokenizer>(std::move(spec));
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
