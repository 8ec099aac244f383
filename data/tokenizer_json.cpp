#include "data/tokenizer_json.h"

#include <algorithm>
#include <initializer_list>

#include "core/error.h"
#include "data/bpe.h"
#include "data/tokenizer_document.h"

namespace shardtune::data {
namespace {

using io::Json;

constexpr std::size_t kMaxAddedBytes = 4u << 20;  // of all added tokens together

using Document = TokenizerDocument;

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
  spec.fuse_unknown = document.flag(*model, "model", "fuse_unk", false);
  if (document.flag(*model, "model", "ignore_merges", false))
    spec.ignore_merges = IgnoreMerges::kYes;
  spec.byte_fallback = document.flag(*model, "model", "byte_fallback", false);
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
    token.content = document.text(entry, path, "content");
    check_text(document, path + ".content", token.content);
    total_bytes += token.content.size();
    if (total_bytes > kMaxAddedBytes)
      document.damaged("added_tokens", "expected at most 4 MiB of tokens");
    token.special = document.flag(entry, path, "special", false);
    token.single_word = document.flag(entry, path, "single_word", false);
    token.lstrip = document.flag(entry, path, "lstrip", false);
    token.rstrip = document.flag(entry, path, "rstrip", false);
    token.normalized = document.flag(entry, path, "normalized", !token.special);
    const auto [found, added] = model_ids.emplace(token.content, token.id);
    if (found->second != token.id)
      document.damaged(path, "'" + token.content.substr(0, 80) + "' has id " +
                                 std::to_string(found->second) + " and id " +
                                 std::to_string(token.id));
    place_token(document, path, spec, token.id, token.content);
    spec.added.push_back(std::move(token));
  }
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
    const std::string& name = document.text(*token, path, "id");
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
  for (const Json* step : document.steps_of(*root, "processors")) {
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

}  // namespace

const Json* present(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

void TokenizerDocument::damaged(const std::string& key, const std::string& what) const {
  throw DataError(name + ": " + key + ": " + what + ". Fetch the file again.");
}

void TokenizerDocument::not_there(const std::string& key, const std::string& what) const {
  throw UnsupportedError(name + ": " + key + ": " + what +
                         " is not there yet; see docs/status.md.");
}

bool TokenizerDocument::flag(const Json& object, const std::string& path, const std::string& key,
                             bool otherwise) const {
  const Json* value = present(object, key);
  if (value == nullptr)
    return otherwise;
  if (!value->is_bool())
    damaged(path + "." + key, "expected true or false, found " + std::string(value->type_name()));
  return value->as_bool();
}

const std::string& TokenizerDocument::text(const Json& object, const std::string& path,
                                           const std::string& key) const {
  const Json* value = present(object, key);
  if (value == nullptr || !value->is_string())
    damaged(path + "." + key, "expected a string, found " +
                                  std::string(value == nullptr ? "nothing" : value->type_name()));
  return value->as_string();
}

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
  read_decoder(document, spec);
  return spec;
}

}  // namespace shardtune::data
