// Tokenizer from the tokenizer.ggml.* metadata of a GGUF file (FORMATS 6.5).
#include "core/error.h"
#include "core/registry.h"
#include "data/gguf_splits.h"
#include "data/sentencepiece.h"
#include "data/text_split.h"
#include "data/tokenizer_document.h"

namespace shardtune::data {
namespace {

constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;

const GgufSplit& split_of(const io::GgufFile& file) {
  const std::string pre = file.string_or("tokenizer.ggml.pre", "");
  std::vector<std::string> names;
  for (const GgufSplit& known : gguf_splits()) {
    if (known.name == pre)
      return known;
    names.emplace_back(known.name);
  }
  throw UnsupportedError(file.path() + ": tokenizer.ggml.pre: '" + pre + "' is not there yet" +
                         known_names_hint(pre, names) + " See docs/status.md.");
}

std::optional<int32_t> token_key(const io::GgufFile& file, const std::string& key,
                                 std::size_t vocabulary) {
  if (file.metadata().find(key) == file.metadata().end())
    return std::nullopt;
  const int64_t id = file.integer(key);
  if (id < 0 || id >= static_cast<int64_t>(vocabulary))
    throw DataError(file.path() + ": " + key + ": expected an id below " +
                    std::to_string(vocabulary) + " (tokenizer.ggml.tokens), found " +
                    std::to_string(id) + ". Fetch the file again.");
  return static_cast<int32_t>(id);
}

void read_merges(const io::GgufFile& file, TokenizerSpec& spec) {
  const std::vector<std::string>* merges = file.strings("tokenizer.ggml.merges");
  if (merges == nullptr)
    throw DataError(file.path() + ": tokenizer.ggml.merges: expected the merges of a byte-level " +
                    "BPE vocabulary, found none. Fetch the file again.");
  spec.merges.reserve(merges->size());
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const std::string& merge = (*merges)[i];
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string::npos || space + 1 == merge.size())
      throw DataError(file.path() + ": tokenizer.ggml.merges[" + std::to_string(i) +
                      "]: expected two tokens with a space between, found '" + merge.substr(0, 80) +
                      "'. Fetch the file again.");
    spec.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
}

const std::vector<std::string>& read_tokens(const io::GgufFile& file) {
  const std::vector<std::string>* tokens = file.strings("tokenizer.ggml.tokens");
  if (tokens == nullptr || tokens->empty() ||
      tokens->size() > static_cast<std::size_t>(kMaxVocabulary))
    throw DataError(file.path() + ": tokenizer.ggml.tokens: expected 1 to " +
                    std::to_string(kMaxVocabulary) + " tokens, found " +
                    std::to_string(tokens == nullptr ? 0 : tokens->size()) +
                    ". Fetch the file again.");
  for (std::size_t id = 0; id < tokens->size(); ++id) {
    const std::string& text = (*tokens)[id];
    if (text.empty() || text.size() > kMaxTokenBytes || text != replace_invalid_utf8(text))
      throw DataError(file.path() + ": tokenizer.ggml.tokens[" + std::to_string(id) +
                      "]: expected 1 to " + std::to_string(kMaxTokenBytes) +
                      " bytes of UTF-8, found " + std::to_string(text.size()) +
                      " bytes. Fetch the file again.");
  }
  return *tokens;
}

/// Types of the tokens; all normal where the file has none.
std::vector<int64_t> read_types(const io::GgufFile& file, std::size_t num_tokens) {
  const std::vector<int64_t>* types = file.integers("tokenizer.ggml.token_type");
  if (types == nullptr)
    return std::vector<int64_t>(num_tokens, 1);
  if (types->size() != num_tokens)
    throw DataError(file.path() + ": tokenizer.ggml.token_type: expected " +
                    std::to_string(num_tokens) + " entries (tokenizer.ggml.tokens), found " +
                    std::to_string(types->size()) + ". Fetch the file again.");
  return *types;
}

void read_byte_level(const io::GgufFile& file, TokenizerSpec& spec) {
  const GgufSplit& pre = split_of(file);
  spec.texts = read_tokens(file);
  spec.in_model.assign(spec.texts.size(), 1);
  const std::vector<int64_t> types = read_types(file, spec.texts.size());
  for (std::size_t id = 0; id < types.size(); ++id) {
    if (types[id] == kControl || types[id] == kUserDefined) {
      AddedToken token;
      token.id = static_cast<int32_t>(id);
      token.content = spec.texts[id];
      token.special = types[id] == kControl;
      spec.added.push_back(std::move(token));
    }
  }
  read_merges(file, spec);
  spec.ignore_merges = pre.ignore_merges();
  spec.pipeline = gguf_pipeline(pre);
  apply_pipeline(file.path(), spec);
}

void read_sentencepiece(const io::GgufFile& file, TokenizerSpec& spec) {
  SentencePieces pieces;
  pieces.texts = read_tokens(file);
  const std::vector<double>* scores = file.numbers("tokenizer.ggml.scores");
  if (scores == nullptr || scores->size() != pieces.texts.size())
    throw DataError(
        file.path() + ": tokenizer.ggml.scores: expected " + std::to_string(pieces.texts.size()) +
        " scores (tokenizer.ggml.tokens), found " +
        std::to_string(scores == nullptr ? 0 : scores->size()) + ". Fetch the file again.");
  for (const double score : *scores)
    pieces.scores.push_back(static_cast<float>(score));
  for (const int64_t type : read_types(file, pieces.texts.size())) {
    if (type < 1 || type > 6)
      throw DataError(file.path() + ": tokenizer.ggml.token_type: expected types from 1 to 6, " +
                      "found " + std::to_string(type) + ". Fetch the file again.");
    pieces.types.push_back(static_cast<PieceType>(type));
  }
  pieces.add_dummy_prefix = file.boolean_or("tokenizer.ggml.add_space_prefix", true);
  fill_sentencepiece_spec(std::move(pieces), spec);
}

/// Reads the vocabulary; true where a BOS is added unless the file says otherwise.
bool read_vocabulary(const io::GgufFile& file, TokenizerSpec& spec) {
  const std::string model = file.string_or("tokenizer.ggml.model", "");
  if (model.empty())
    throw MissingInputError(file.path() +
                            ": tokenizer.ggml.model: the file has no tokenizer. "
                            "Use a GGUF file with one, or a model folder with tokenizer.json.");
  if (model == "llama") {
    read_sentencepiece(file, spec);
    return true;
  }
  if (model != "gpt2")
    throw UnsupportedError(file.path() + ": tokenizer.ggml.model: expected 'gpt2' (byte-level " +
                           "BPE) or 'llama' (SentencePiece's BPE), found '" + model +
                           "', which is not there yet. See docs/status.md.");
  read_byte_level(file, spec);
  return split_of(file).flags == GgufSplit::Flags::kWholeWordsAndBos;
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_from_gguf(const io::GgufFile& file) {
  TokenizerSpec spec;
  spec.where = file.path();
  const bool adds_bos = read_vocabulary(file, spec);
  const std::size_t vocabulary = spec.texts.size();
  spec.bos = token_key(file, "tokenizer.ggml.bos_token_id", vocabulary);
  spec.eos = token_key(file, "tokenizer.ggml.eos_token_id", vocabulary);
  spec.pad = token_key(file, "tokenizer.ggml.padding_token_id", vocabulary);
  if (file.boolean_or("tokenizer.ggml.add_bos_token", adds_bos) && spec.bos)
    spec.prefix_ids.push_back(*spec.bos);
  if (file.boolean_or("tokenizer.ggml.add_eos_token", false) && spec.eos)
    spec.suffix_ids.push_back(*spec.eos);
  if (const auto end_of_turn = token_key(file, "tokenizer.ggml.eot_token_id", vocabulary))
    spec.stop_ids.push_back(*end_of_turn);
  add_end_of_turn_tokens(spec);
  spec.chat_template = file.string_or("tokenizer.chat_template", "");
  const std::string architecture = file.string_or("general.architecture", "");
  const int64_t context = file.integer_or(architecture + ".context_length", 0);
  spec.unknown_name = token_key(file, "tokenizer.ggml.unknown_token_id", vocabulary);
  spec.tokenizer_config_json = write_tokenizer_config(spec, context);
  return make_bpe_tokenizer(std::move(spec));
}

}  // namespace shardtune::data
