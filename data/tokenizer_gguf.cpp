// Tokenizer from the tokenizer.ggml.* metadata of a GGUF file (FORMATS 6.5).
#include "core/error.h"
#include "core/registry.h"
#include "data/tokenizer_spec.h"

namespace shardtune::data {
namespace {

constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;

struct PreSplit {
  std::string_view name;
  DigitSplit digits;
};

/// Split rules of tokenizer.ggml.pre that are GPT-2's pattern, with or without single digits
/// before it, as llama.cpp groups them.
constexpr PreSplit kPreSplits[] = {{"gpt-2", DigitSplit::kNone},
                                   {"phi-2", DigitSplit::kNone},
                                   {"mpt", DigitSplit::kNone},
                                   {"olmo", DigitSplit::kNone},
                                   {"jais", DigitSplit::kNone},
                                   {"trillion", DigitSplit::kNone},
                                   {"smollm", DigitSplit::kIndividual},
                                   {"starcoder", DigitSplit::kIndividual},
                                   {"refact", DigitSplit::kIndividual},
                                   {"command-r", DigitSplit::kIndividual},
                                   {"codeshell", DigitSplit::kIndividual},
                                   {"exaone", DigitSplit::kIndividual},
                                   {"minerva-7b", DigitSplit::kIndividual}};

std::vector<std::string> known_pre_names() {
  std::vector<std::string> names;
  for (const PreSplit& pre : kPreSplits)
    names.emplace_back(pre.name);
  return names;
}

DigitSplit digit_split_of(const io::GgufFile& file) {
  const std::string model = file.string_or("tokenizer.ggml.model", "");
  if (model.empty())
    throw MissingInputError(file.path() +
                            ": tokenizer.ggml.model: the file has no tokenizer. "
                            "Use a GGUF file with one, or a model folder with tokenizer.json.");
  if (model != "gpt2")
    throw UnsupportedError(file.path() + ": tokenizer.ggml.model: expected 'gpt2' (byte-level " +
                           "BPE), found '" + model + "', which is not there yet. See " +
                           "docs/status.md.");
  const std::string pre = file.string_or("tokenizer.ggml.pre", "");
  for (const PreSplit& known : kPreSplits) {
    if (known.name == pre)
      return known.digits;
  }
  throw UnsupportedError(file.path() + ": tokenizer.ggml.pre: '" + pre + "' is not there yet" +
                         known_names_hint(pre, known_pre_names()) + " See docs/status.md.");
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

void read_tokens(const io::GgufFile& file, TokenizerSpec& spec) {
  const std::vector<std::string>* tokens = file.strings("tokenizer.ggml.tokens");
  if (tokens == nullptr || tokens->empty() ||
      tokens->size() > static_cast<std::size_t>(kMaxVocabulary))
    throw DataError(file.path() + ": tokenizer.ggml.tokens: expected 1 to " +
                    std::to_string(kMaxVocabulary) + " tokens, found " +
                    std::to_string(tokens == nullptr ? 0 : tokens->size()) +
                    ". Fetch the file again.");
  const std::vector<int64_t>* types = file.integers("tokenizer.ggml.token_type");
  if (types != nullptr && types->size() != tokens->size())
    throw DataError(file.path() + ": tokenizer.ggml.token_type: expected " +
                    std::to_string(tokens->size()) + " entries (tokenizer.ggml.tokens), found " +
                    std::to_string(types->size()) + ". Fetch the file again.");
  for (std::size_t id = 0; id < tokens->size(); ++id) {
    const std::string& text = (*tokens)[id];
    if (text.empty() || text.size() > kMaxTokenBytes || text != replace_invalid_utf8(text))
      throw DataError(file.path() + ": tokenizer.ggml.tokens[" + std::to_string(id) +
                      "]: expected 1 to " + std::to_string(kMaxTokenBytes) +
                      " bytes of UTF-8, found " + std::to_string(text.size()) +
                      " bytes. Fetch the file again.");
    const int64_t type = types != nullptr ? (*types)[id] : 1;
    if (type == kControl || type == kUserDefined) {
      AddedToken token;
      token.id = static_cast<int32_t>(id);
      token.content = text;
      token.special = type == kControl;
      spec.added.push_back(std::move(token));
    }
  }
  spec.texts = *tokens;
  spec.in_model.assign(tokens->size(), 1);
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

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_from_gguf(const io::GgufFile& file) {
  TokenizerSpec spec;
  spec.where = file.path();
  spec.digits = digit_split_of(file);
  read_tokens(file, spec);
  read_merges(file, spec);
  const std::size_t vocabulary = spec.texts.size();
  spec.bos = token_key(file, "tokenizer.ggml.bos_token_id", vocabulary);
  spec.eos = token_key(file, "tokenizer.ggml.eos_token_id", vocabulary);
  spec.pad = token_key(file, "tokenizer.ggml.padding_token_id", vocabulary);
  if (file.boolean_or("tokenizer.ggml.add_bos_token", false) && spec.bos)
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
  return make_byte_bpe_tokenizer(std::move(spec));
}

}  // namespace shardtune::data
