// Tokenizer from a model folder: tokenizer.json as the reference reads it (FORMATS 3.1), or a
// tokenizer.model alone, with tokenizer_config.json, chat_template.jinja and generation_config.json
// beside it.
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <utility>

#include "core/error.h"
#include "data/sentencepiece.h"
#include "data/tokenizer_json.h"
#include "data/tokenizer_spec.h"
#include "io/file.h"
#include "io/json.h"

namespace shardtune::data {
namespace {

using io::Json;

constexpr int64_t kMaxTokenizerBytes = 256ll << 20;
constexpr int64_t kMaxConfigBytes = 32ll << 20;
constexpr int64_t kMaxAddedTokens = 65536;

/// A JSON object file of the folder, or an empty object when it is not there.
Json read_optional_object(const io::fs::path& path) {
  if (!io::fs::exists(path))
    return Json::object();
  Json value = io::parse_json(io::read_text_file(path, kMaxConfigBytes), path.string());
  if (!value.is_object())
    throw DataError(path.string() + ": expected an object, found " +
                    std::string(value.type_name()) + ". Fetch the file again.");
  return value;
}

std::optional<int32_t> find_token(const TokenizerSpec& spec, std::string_view text) {
  for (const AddedToken& token : spec.added) {
    if (token.content == text)
      return token.id;
  }
  for (std::size_t id = 0; id < spec.texts.size(); ++id) {
    if (spec.texts[id] == text)
      return static_cast<int32_t>(id);
  }
  return std::nullopt;
}

/// A token named in tokenizer_config.json: a string, or an object with "content".
std::optional<int32_t> named_token(const TokenizerSpec& spec, const Json& config,
                                   const std::string& where, const char* key) {
  const Json* value = config.find(key);
  if (value != nullptr && value->is_object())
    value = value->find("content");
  if (value == nullptr || value->is_null())
    return std::nullopt;
  if (!value->is_string())
    throw DataError(where + ": " + key + ": expected a string, found " +
                    std::string(value->type_name()) + ". Fetch the file again.");
  const auto id = find_token(spec, value->as_string());
  if (!id)
    throw DataError(where + ": " + key + ": expected a token of the tokenizer, found '" +
                    value->as_string().substr(0, 80) + "'. Use files of one model.");
  return id;
}

/// An id of config.json or generation_config.json, or the first of a list.
std::vector<int32_t> ids_of(const Json& config, const std::string& where, const char* key,
                            std::size_t vocabulary) {
  const Json* value = config.find(key);
  std::vector<int32_t> ids;
  if (value == nullptr || value->is_null())
    return ids;
  const auto add = [&](const Json& id) {
    if (!id.is_integer() || id.as_integer() < 0 ||
        id.as_integer() >= static_cast<int64_t>(vocabulary))
      throw DataError(where + ": " + key + ": expected an id below " + std::to_string(vocabulary) +
                      " (tokenizer.json), found " + id.dump() + ". Use files of one model.");
    ids.push_back(static_cast<int32_t>(id.as_integer()));
  };
  if (value->is_array()) {
    for (const Json& id : value->as_array())
      add(id);
  } else {
    add(*value);
  }
  return ids;
}

/// Text of the default template: the file chat_template.jinja wins over the config's key, which is
/// a string or a list of {name, template}.
std::string read_chat_template(const io::fs::path& folder, const Json& config) {
  const io::fs::path file = folder / "chat_template.jinja";
  if (io::fs::exists(file))
    return io::read_text_file(file, kMaxConfigBytes);
  const Json* value = config.find("chat_template");
  if (value == nullptr)
    return "";
  if (value->is_string())
    return value->as_string();
  if (value->is_array()) {
    for (const Json& entry : value->as_array()) {
      const Json* name = entry.find("name");
      const Json* text = entry.find("template");
      if (name != nullptr && name->is_string() && name->as_string() == "default" &&
          text != nullptr && text->is_string())
        return text->as_string();
    }
  }
  return "";
}

/// The config as it is, except for the class: transformers rebuilds the pipeline of some classes
/// and then ignores tokenizer.json (FORMATS 3.1).
std::string adjusted_config(const Json& config, const std::string& chat_template) {
  Json adjusted = config;
  adjusted.set("tokenizer_class", "PreTrainedTokenizerFast");
  if (!chat_template.empty() && adjusted.find("chat_template") == nullptr)
    adjusted.set("chat_template", chat_template);
  return adjusted.dump(2) + "\n";
}

void read_special_ids(const io::fs::path& folder, const Json& config, TokenizerSpec& spec) {
  const std::string where = (folder / "tokenizer_config.json").string();
  spec.bos = named_token(spec, config, where, "bos_token");
  spec.eos = named_token(spec, config, where, "eos_token");
  spec.pad = named_token(spec, config, where, "pad_token");
  for (const char* name : {"generation_config.json", "config.json"}) {
    const Json other = read_optional_object(folder / name);
    const std::string path = (folder / name).string();
    const auto bos = ids_of(other, path, "bos_token_id", spec.texts.size());
    const auto eos = ids_of(other, path, "eos_token_id", spec.texts.size());
    if (!spec.bos && !bos.empty())
      spec.bos = bos.front();
    if (!spec.eos && !eos.empty())
      spec.eos = eos.front();
    spec.stop_ids.insert(spec.stop_ids.end(), eos.begin(), eos.end());
  }
  add_end_of_turn_tokens(spec);
}

void require_tokenizer(const io::fs::path& folder) {
  if (io::fs::exists(folder / "tokenizer.json") || io::fs::exists(folder / "tokenizer.model"))
    return;
  for (const char* other : {"vocab.json", "spiece.model"}) {
    if (io::fs::exists(folder / other))
      throw UnsupportedError((folder / other).string() + ": this kind of tokenizer is not there " +
                             "yet, see docs/status.md. Save the tokenizer as tokenizer.json.");
  }
  throw MissingInputError(
      (folder / "tokenizer.json").string() +
      ": no such file. Copy the tokenizer's files of the model into its folder.");
}

/// Tokens that tokenizer_config.json adds to a tokenizer.model.
void read_added_tokens(const io::fs::path& folder, const Json& config, TokenizerSpec& spec) {
  const Json* added = config.find("added_tokens_decoder");
  if (added == nullptr || !added->is_object())
    return;
  const std::string where = (folder / "tokenizer_config.json").string() + ": added_tokens_decoder";
  const int64_t num_ids = static_cast<int64_t>(spec.texts.size()) + kMaxAddedTokens;
  std::map<int32_t, AddedToken> by_id;  // one of the config replaces the vocabulary's own
  for (AddedToken& token : spec.added)
    by_id[token.id] = std::move(token);
  for (const auto& [key, entry] : added->as_object()) {
    AddedToken token;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token.id);
    const Json* content = entry.find("content");
    if (error != std::errc() || end != key.data() + key.size() || token.id < 0 ||
        token.id >= num_ids)
      throw DataError(where + ": expected ids below " + std::to_string(num_ids) + ", " +
                      std::to_string(kMaxAddedTokens) + " above the vocabulary, found '" +
                      key.substr(0, 80) + "'. Fetch the file again.");
    if (content == nullptr || !content->is_string() || content->as_string().empty() ||
        content->as_string().size() > kMaxTokenBytes)
      throw DataError(where + ": " + key + ": expected content of 1 to " +
                      std::to_string(kMaxTokenBytes) + " bytes, found " +
                      (content == nullptr ? "none" : content->dump().substr(0, 80)) +
                      ". Fetch the file again.");
    const auto flag = [&entry = entry](const char* name) {
      const Json* value = entry.find(name);
      return value != nullptr && value->is_bool() && value->as_bool();
    };
    token.content = content->as_string();
    token.special = flag("special");
    token.single_word = flag("single_word");
    token.lstrip = flag("lstrip");
    token.rstrip = flag("rstrip");
    const auto index = static_cast<std::size_t>(token.id);
    if (index >= spec.texts.size()) {
      spec.texts.resize(index + 1);
      spec.in_model.resize(index + 1, 0);
    }
    if (!spec.texts[index].empty() && spec.texts[index] != token.content)
      throw DataError(where + ": id " + key + ": expected '" + spec.texts[index].substr(0, 80) +
                      "' (tokenizer.model), found '" + token.content.substr(0, 80) +
                      "'. Use files of one model.");
    spec.texts[index] = token.content;
    by_id[token.id] = std::move(token);
  }
  spec.added.clear();
  for (auto& [id, token] : by_id)
    spec.added.push_back(std::move(token));
}

bool config_flag(const Json& config, const char* key, bool otherwise) {
  const Json* value = config.find(key);
  return value != nullptr && value->is_bool() ? value->as_bool() : otherwise;
}

TokenizerSpec read_model_file(const io::fs::path& folder, const Json& config) {
  const std::string path = (folder / "tokenizer.model").string();
  TokenizerSpec spec;
  spec.where = path;
  fill_sentencepiece_spec(
      parse_sentencepiece_model(io::read_text_file(path, kMaxTokenizerBytes), path), spec);
  read_added_tokens(folder, config, spec);
  return spec;
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_from_folder(const std::string& folder_name) {
  const io::fs::path folder(folder_name);
  require_tokenizer(folder);
  const io::fs::path path = folder / "tokenizer.json";
  const Json config = read_optional_object(folder / "tokenizer_config.json");
  TokenizerSpec spec;
  const bool has_json = io::fs::exists(path);
  if (has_json) {
    std::string text = io::read_text_file(path, kMaxTokenizerBytes);
    spec = parse_tokenizer_json(text, path.string());
    spec.tokenizer_json = std::move(text);
  } else {
    spec = read_model_file(folder, config);
  }
  read_special_ids(folder, config, spec);
  if (!has_json && config_flag(config, "add_bos_token", true) && spec.bos)
    spec.prefix_ids.push_back(*spec.bos);
  if (!has_json && config_flag(config, "add_eos_token", false) && spec.eos)
    spec.suffix_ids.push_back(*spec.eos);
  spec.chat_template = read_chat_template(folder, config);
  spec.tokenizer_config_json = adjusted_config(config, spec.chat_template);
  return make_bpe_tokenizer(std::move(spec));
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& model) {
  const io::fs::path path(model);
  std::error_code ignored;
  if (io::fs::is_directory(path, ignored))
    return load_tokenizer_from_folder(model);
  if (!io::fs::exists(path, ignored))
    throw MissingInputError(model +
                            ": no such model. Give a folder with tokenizer.json, or a .gguf "
                            "file.");
  if (path.extension() == ".gguf")
    return load_tokenizer_from_gguf(*io::open_gguf(path));
  throw UnsupportedError(model +
                         ": expected a model folder or a .gguf file, found another file. "
                         "Give one of these.");
}

}  // namespace shardtune::data
