// tokenizer.json and tokenizer_config.json for a tokenizer that came from GGUF or tokenizer.model,
// so that tokenizers.Tokenizer.from_file yields the same ids.
#include <tuple>

#include "data/tokenizer_spec.h"
#include "io/json.h"

namespace shardtune::data {
namespace {

using io::Json;

Json object(std::initializer_list<Json::Member> members) { return Json(Json::Object(members)); }

Json parsed_or_null(const std::string& text) {
  return text.empty() ? Json(nullptr) : io::parse_json(text, "tokenizer.json");
}

Json added_tokens(const TokenizerSpec& spec) {
  Json tokens = Json::array();
  for (const AddedToken& token : spec.added) {
    tokens.push_back(object({{"id", token.id},
                             {"content", token.content},
                             {"single_word", token.single_word},
                             {"lstrip", token.lstrip},
                             {"rstrip", token.rstrip},
                             {"normalized", token.normalized},
                             {"special", token.special}}));
  }
  return tokens;
}

Json post_processor(const TokenizerSpec& spec) {
  if (spec.prefix_ids.empty() && spec.suffix_ids.empty() && spec.alphabet == TokenAlphabet::kText)
    return nullptr;
  if (spec.prefix_ids.empty() && spec.suffix_ids.empty())
    return object({{"type", "ByteLevel"},
                   {"add_prefix_space", true},
                   {"trim_offsets", false},
                   {"use_regex", true}});
  Json single = Json::array();
  Json pair = Json::array();
  Json special = Json::object();
  const auto add_ends = [&](Json& list, const std::vector<int32_t>& ids, int type_id) {
    for (const int32_t id : ids) {
      const std::string& text = spec.texts[static_cast<std::size_t>(id)];
      list.push_back(object({{"SpecialToken", object({{"id", text}, {"type_id", type_id}})}}));
      special.set(text, object({{"id", text},
                                {"ids", Json(Json::Array{Json(id)})},
                                {"tokens", Json(Json::Array{Json(text)})}}));
    }
  };
  const auto add_sequence = [](Json& list, const char* name, int type_id) {
    list.push_back(object({{"Sequence", object({{"id", name}, {"type_id", type_id}})}}));
  };
  for (const auto& [list, name, type_id] :
       {std::tuple<Json*, const char*, int>{&single, "A", 0}, {&pair, "A", 0}, {&pair, "B", 1}}) {
    add_ends(*list, spec.prefix_ids, type_id);
    add_sequence(*list, name, type_id);
    add_ends(*list, spec.suffix_ids, type_id);
  }
  return object({{"type", "TemplateProcessing"},
                 {"single", std::move(single)},
                 {"pair", std::move(pair)},
                 {"special_tokens", std::move(special)}});
}

Json model(const TokenizerSpec& spec) {
  Json::Object vocabulary;
  vocabulary.reserve(spec.texts.size());
  for (std::size_t id = 0; id < spec.texts.size(); ++id)
    vocabulary.emplace_back(spec.texts[id], Json(static_cast<int64_t>(id)));
  const auto text_of = [&](int32_t id) { return spec.texts[static_cast<std::size_t>(id)]; };
  Json::Array merges;
  merges.reserve(spec.merges.size());
  for (const auto& [left, right] : spec.merges)
    merges.emplace_back(Json::Array{Json(left), Json(right)});
  return object({{"type", "BPE"},
                 {"dropout", nullptr},
                 {"unk_token", spec.unknown_id ? Json(text_of(*spec.unknown_id)) : Json(nullptr)},
                 {"continuing_subword_prefix", nullptr},
                 {"end_of_word_suffix", nullptr},
                 {"fuse_unk", spec.fuse_unknown},
                 {"byte_fallback", spec.byte_fallback},
                 {"ignore_merges", spec.ignore_merges == IgnoreMerges::kYes},
                 {"vocab", Json(std::move(vocabulary))},
                 {"merges", Json(std::move(merges))}});
}

}  // namespace

std::string write_tokenizer_json(const TokenizerSpec& spec) {
  const Json document = object({{"version", "1.0"},
                                {"truncation", nullptr},
                                {"padding", nullptr},
                                {"added_tokens", added_tokens(spec)},
                                {"normalizer", parsed_or_null(spec.pipeline.normalizer)},
                                {"pre_tokenizer", parsed_or_null(spec.pipeline.pre_tokenizer)},
                                {"post_processor", post_processor(spec)},
                                {"decoder", parsed_or_null(spec.pipeline.decoder)},
                                {"model", model(spec)}});
  return document.dump() + "\n";
}

std::string write_tokenizer_config(const TokenizerSpec& spec, int64_t model_max_length) {
  Json config = object({{"tokenizer_class", "PreTrainedTokenizerFast"}});
  const auto set_token = [&](const char* key, const std::optional<int32_t>& id) {
    if (id)
      config.set(key, spec.texts[static_cast<std::size_t>(*id)]);
  };
  set_token("bos_token", spec.bos);
  set_token("eos_token", spec.eos);
  set_token("unk_token", spec.unknown_name);
  set_token("pad_token", spec.pad);
  if (model_max_length > 0)
    config.set("model_max_length", model_max_length);
  if (!spec.chat_template.empty())
    config.set("chat_template", spec.chat_template);
  config.set("clean_up_tokenization_spaces", false);
  return config.dump(2) + "\n";
}

}  // namespace shardtune::data
