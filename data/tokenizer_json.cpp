#include "data/tokenizer_json.h"

#include <algorithm>
#include <initializer_list>

#include "core/error.h"
#include "data/bpe.h"
#include "io/json.h"

namespace shardtune::data {
namespace {

using io::Json;

constexpr std::size_t kMaxAddedBytes = 4u << 20;  // of all added tokens together
constexpr int kMaxNesting = 8;                    // of Sequence in Sequence

/// The document with its name, and the errors about it.
struct Document {
  std::string name;
  const Json& root;
  int64_t max_ids = 0;

  [[noreturn]] void damaged(const std::string& key, const std::string& what) const {
    throw DataError(name + ": " + key + ": " + what + ". Fetch the file again.");
  }
  [[noreturn]] void not_there(const std::string& key, const std::string& what) const {
    throw UnsupportedError(name + ": " + key + ": " + what +
                           " is not there yet; see docs/status.md.");
  }
};

const Json* present(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

bool flag(const Document& document, const Json& object, const std::string& path,
          const std::string& key, bool otherwise) {
  const Json* value = present(object, key);
  if (value == nullptr)
    return otherwise;
  if (!value->is_bool())
    document.damaged(path + "." + key,
                     "expected true or false, found " + std::string(value->type_name()));
  return value->as_bool();
}

const std::string& text_member(const Document& document, const Json& object,
                               const std::string& path, const std::string& key) {
  const Json* value = present(object, key);
  if (value == nullptr || !value->is_string())
    document.damaged(path + "." + key,
                     "expected a string, found " +
                         std::string(value == nullptr ? "nothing" : value->type_name()));
  return value->as_string();
}

int32_t token_id(const Document& document, const std::string& path, const Json& value) {
  if (!value.is_integer() || value.as_integer() < 0 || value.as_integer() >= document.max_ids)
    document.damaged(path, "expected an id from 0 to " + std::to_string(document.max_ids - 1) +
                               ", found " + value.dump().substr(0, 80));
  return static_cast<int32_t>(value.as_integer());
}

void check_text(const Document& document, const std::string& path, const std::string& text) {
  if (text.empty() || text.size() > kMaxTokenBytes)
    document.damaged(path, "expected a token of 1 to " + std::to_string(kMaxTokenBytes) +
                               " bytes, found " + std::to_string(text.size()));
}

/// Ids may have gaps (reserved rows), but not so many that a small file asks for much memory.
int64_t id_limit(const Document& document) {
  const auto count = [](const Json* list) -> int64_t {
    if (list == nullptr)
      return 0;
    return static_cast<int64_t>(list->is_object()  ? list->as_object().size()
                                : list->is_array() ? list->as_array().size()
                                                   : 0);
  };
  const Json* model = present(document.root, "model");
  const int64_t tokens = count(model != nullptr ? present(*model, "vocab") : nullptr) +
                         count(present(document.root, "added_tokens"));
  return std::min(kMaxVocabulary, 2 * tokens + 65536);
}

/// Puts a token at its id; two tokens at one id are an error.
void place_token(const Document& document, const std::string& path, TokenizerSpec& spec, int32_t id,
                 const std::string& text) {
  const auto index = static_cast<std::size_t>(id);
  if (index >= spec.texts.size()) {
    spec.texts.resize(index + 1);
    spec.in_model.resize(index + 1, 0);
  }
  if (!spec.texts[index].empty() && spec.texts[index] != text)
    document.damaged(path, "id " + std::to_string(id) + " belongs to '" +
                               spec.texts[index].substr(0, 80) + "' and '" + text.substr(0, 80) +
                               "'");
  spec.texts[index] = text;
}

void read_vocabulary(const Document& document, const Json& model, TokenizerSpec& spec) {
  const Json* vocabulary = present(model, "vocab");
  if (vocabulary == nullptr || !vocabulary->is_object() || vocabulary->as_object().empty())
    document.damaged("model.vocab", "expected tokens and their ids");
  for (const auto& [text, value] : vocabulary->as_object()) {
    check_text(document, "model.vocab", text);
    const int32_t id = token_id(document, "model.vocab['" + text.substr(0, 80) + "']", value);
    place_token(document, "model.vocab", spec, id, text);
    spec.in_model[static_cast<std::size_t>(id)] = 1;
  }
}

std::pair<std::string, std::string> read_merge(const Document& document, const Json& merge,
                                               std::size_t at) {
  if (merge.is_string()) {
    const std::string& text = merge.as_string();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  } else if (merge.is_array() && merge.as_array().size() == 2 && merge.as_array()[0].is_string() &&
             merge.as_array()[1].is_string()) {
    return {merge.as_array()[0].as_string(), merge.as_array()[1].as_string()};
  }
  document.damaged("model.merges[" + std::to_string(at) + "]",
                   "expected two tokens, found " + merge.dump().substr(0, 80));
}

void read_merges(const Document& document, const Json& model, TokenizerSpec& spec) {
  const Json* merges = present(model, "merges");
  if (merges == nullptr || !merges->is_array())
    document.damaged("model.merges", "expected a list of pairs");
  spec.merges.reserve(merges->as_array().size());
  for (std::size_t i = 0; i < merges->as_array().size(); ++i)
    spec.merges.push_back(read_merge(document, merges->as_array()[i], i));
}

void read_model(const Document& document, TokenizerSpec& spec) {
  const Json* model = present(document.root, "model");
  if (model == nullptr || !model->is_object())
    document.damaged("model", "expected an object");
  // Old files have no type; theirs is told by the keys.
  const Json* type = present(*model, "type");
  const std::string kind = type != nullptr && type->is_string() ? type->as_string()
                           : model->find("merges") != nullptr   ? "BPE"
                                                                : "of unknown type";
  if (kind != "BPE")
    document.not_there("model.type", "a model '" + kind + "'");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* value = present(*model, affix);
    if (value != nullptr && !(value->is_string() && value->as_string().empty()))
      document.not_there(std::string("model.") + affix, value->dump().substr(0, 80));
  }
  const Json* dropout = present(*model, "dropout");
  if (dropout != nullptr && !(dropout->is_number() && dropout->as_number() == 0.0))
    document.not_there("model.dropout", "random merging (" + dropout->dump().substr(0, 80) + ")");
  read_vocabulary(document, *model, spec);
  read_merges(document, *model, spec);
  spec.fuse_unknown = flag(document, *model, "model", "fuse_unk", false);
  if (flag(document, *model, "model", "ignore_merges", false))
    spec.ignore_merges = IgnoreMerges::kYes;
  if (flag(document, *model, "model", "byte_fallback", false))
    document.not_there("model.byte_fallback", "byte fallback");
  if (const Json* unknown = present(*model, "unk_token")) {
    const auto found = unknown->is_string()
                           ? std::find(spec.texts.begin(), spec.texts.end(), unknown->as_string())
                           : spec.texts.end();
    if (found == spec.texts.end())
      document.damaged("model.unk_token",
                       "expected a token of model.vocab, found " + unknown->dump().substr(0, 80));
    spec.unknown_id = static_cast<int32_t>(found - spec.texts.begin());
  }
}

void read_added_tokens(const Document& document, TokenizerSpec& spec) {
  const Json* tokens = present(document.root, "added_tokens");
  if (tokens == nullptr)
    return;
  if (!tokens->is_array())
    document.damaged("added_tokens", "expected a list");
  std::unordered_map<std::string, int32_t> model_ids;
  for (std::size_t id = 0; id < spec.texts.size(); ++id) {
    if (!spec.texts[id].empty())
      model_ids.emplace(spec.texts[id], static_cast<int32_t>(id));
  }
  std::size_t total_bytes = 0;
  for (std::size_t i = 0; i < tokens->as_array().size(); ++i) {
    const Json& entry = tokens->as_array()[i];
    const std::string path = "added_tokens[" + std::to_string(i) + "]";
    if (!entry.is_object() || present(entry, "id") == nullptr)
      document.damaged(path, "expected an object with id and content");
    AddedToken token;
    token.id = token_id(document, path + ".id", *present(entry, "id"));
    token.content = text_member(document, entry, path, "content");
    check_text(document, path + ".content", token.content);
    total_bytes += token.content.size();
    if (total_bytes > kMaxAddedBytes)
      document.damaged("added_tokens", "expected at most 4 MiB of tokens");
    token.special = flag(document, entry, path, "special", false);
    token.single_word = flag(document, entry, path, "single_word", false);
    token.lstrip = flag(document, entry, path, "lstrip", false);
    token.rstrip = flag(document, entry, path, "rstrip", false);
    token.normalized = flag(document, entry, path, "normalized", !token.special);
    const auto [found, added] = model_ids.emplace(token.content, token.id);
    if (found->second != token.id)
      document.damaged(path, "'" + token.content.substr(0, 80) + "' has id " +
                                 std::to_string(found->second) + " and id " +
                                 std::to_string(token.id));
    place_token(document, path, spec, token.id, token.content);
    spec.added.push_back(std::move(token));
  }
}

void read_normalizer(const Document& document, TokenizerSpec& spec) {
  const Json* normalizer = present(document.root, "normalizer");
  if (normalizer == nullptr)
    return;
  const std::string& type = text_member(document, *normalizer, "normalizer", "type");
  if (type != "NFC")
    document.not_there("normalizer", "'" + type.substr(0, 80) + "'");
  spec.normalizer = Normalizer::kNfc;
}

/// Flattens Sequence into the list of its steps.
void flatten(const Document& document, const Json& step, const std::string& list_key, int depth,
             std::vector<const Json*>& steps) {
  const std::string& path = list_key;
  if (depth > kMaxNesting)
    document.damaged(path, "expected at most " + std::to_string(kMaxNesting) + " nested lists");
  if (text_member(document, step, path, "type") != "Sequence") {
    steps.push_back(&step);
    return;
  }
  const Json* list = present(step, list_key);
  if (list == nullptr || !list->is_array())
    document.damaged(path, "expected a list");
  for (const Json& inner : list->as_array())
    flatten(document, inner, list_key, depth + 1, steps);
}

void read_pre_tokenizer(const Document& document, TokenizerSpec& spec) {
  const Json* root = present(document.root, "pre_tokenizer");
  if (root == nullptr)
    document.not_there("pre_tokenizer", "a BPE model without a ByteLevel step");
  std::vector<const Json*> steps;
  flatten(document, *root, "pretokenizers", 0, steps);
  bool has_byte_level = false;
  for (const Json* step : steps) {
    const std::string& type = step->find("type")->as_string();
    if (has_byte_level)
      document.not_there("pre_tokenizer", "a step '" + type.substr(0, 80) + "' after ByteLevel");
    if (type == "Digits") {
      const bool individual =
          flag(document, *step, "pre_tokenizer.Digits", "individual_digits", false);
      if (individual)
        spec.digits = DigitSplit::kIndividual;
      else if (spec.digits == DigitSplit::kNone)
        spec.digits = DigitSplit::kRuns;
    } else if (type == "ByteLevel") {
      has_byte_level = true;
      if (flag(document, *step, "pre_tokenizer.ByteLevel", "add_prefix_space", true))
        spec.prefix_space = PrefixSpace::kAdd;
      if (!flag(document, *step, "pre_tokenizer.ByteLevel", "use_regex", true))
        spec.split = PieceSplit::kWhole;
    } else {
      document.not_there("pre_tokenizer", "a step '" + type.substr(0, 80) + "'");
    }
  }
  if (!has_byte_level)
    document.not_there("pre_tokenizer", "a BPE model without a ByteLevel step");
}

void read_template(const Document& document, const Json& processor, TokenizerSpec& spec) {
  const std::string path = "post_processor.single";
  const Json* single = present(processor, "single");
  const Json* special = present(processor, "special_tokens");
  if (single == nullptr || !single->is_array())
    document.damaged(path, "expected a list");
  bool after_text = false;
  for (const Json& piece : single->as_array()) {
    if (piece.find("Sequence") != nullptr) {
      if (after_text)
        document.not_there(path, "a text used twice");
      after_text = true;
      continue;
    }
    const Json* token = piece.find("SpecialToken");
    if (token == nullptr)
      document.damaged(path, "expected SpecialToken or Sequence");
    const std::string& name = text_member(document, *token, path, "id");
    const Json* entry = special != nullptr ? special->find(name) : nullptr;
    const Json* ids = entry != nullptr ? entry->find("ids") : nullptr;
    if (ids == nullptr || !ids->is_array())
      document.damaged("post_processor.special_tokens",
                       "expected the ids of '" + name.substr(0, 80) + "'");
    for (const Json& id : ids->as_array())
      (after_text ? spec.suffix_ids : spec.prefix_ids)
          .push_back(token_id(document, "post_processor.special_tokens", id));
  }
  if (!after_text)
    document.not_there(path, "a template without the text");
}

void read_post_processor(const Document& document, TokenizerSpec& spec) {
  const Json* root = present(document.root, "post_processor");
  if (root == nullptr)
    return;
  std::vector<const Json*> steps;
  flatten(document, *root, "processors", 0, steps);
  for (const Json* step : steps) {
    const std::string& type = step->find("type")->as_string();
    if (type == "TemplateProcessing") {
      if (!spec.prefix_ids.empty() || !spec.suffix_ids.empty())
        document.not_there("post_processor", "a second TemplateProcessing");
      read_template(document, *step, spec);
    } else if (type != "ByteLevel") {  // ByteLevel moves offsets only
      document.not_there("post_processor", "'" + type.substr(0, 80) + "'");
    }
  }
}

void check_decoder(const Document& document) {
  const Json* decoder = present(document.root, "decoder");
  if (decoder == nullptr)
    document.not_there("decoder", "a file without ByteLevel decoder");
  const std::string& type = text_member(document, *decoder, "decoder", "type");
  if (type != "ByteLevel")
    document.not_there("decoder", "'" + type.substr(0, 80) + "'");
}

}  // namespace

TokenizerSpec parse_tokenizer_json(const std::string& text, const std::string& name) {
  const Json root = io::parse_json(text, name);
  Document document{name, root};
  if (!root.is_object())
    document.damaged("top level", "expected an object");
  document.max_ids = id_limit(document);
  TokenizerSpec spec;
  spec.where = name;
  read_model(document, spec);
  read_added_tokens(document, spec);
  read_normalizer(document, spec);
  read_pre_tokenizer(document, spec);
  read_post_processor(document, spec);
  check_decoder(document);
  return spec;
}

}  // namespace shardtune::data
