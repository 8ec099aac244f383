// Tokenizer files as they come: hostile, of other kinds, and with settings beside them.
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/rng.h"
#include "data/tokenizer.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using io::Json;
using testing::expect_error;
using testing::golden;
using testing::TempFolder;

Json small_document() { return io::read_json_file(golden("tokenizer/small_digits.json")); }

Json& member(Json& object, std::string_view key) {
  for (auto& [name, value] : object.as_object()) {
    if (name == key)
      return value;
  }
  throw std::runtime_error("no member " + std::string(key));
}

std::unique_ptr<Tokenizer> load(const std::string& tokenizer_json) {
  const TempFolder folder;
  folder.write("tokenizer.json", tokenizer_json);
  return load_tokenizer(folder.path());
}

template <typename Expected>
void expect_refused(const std::function<void(Json&)>& change,
                    const std::vector<std::string>& parts) {
  Json document = small_document();
  change(document);
  expect_error<Expected>([&] { load(document.dump()); }, parts);
}

Json object(std::initializer_list<Json::Member> members) { return Json(Json::Object(members)); }

TEST(TokenizerJson, RefusesKindsToComeByName) {
  expect_refused<UnsupportedError>([](Json& d) { member(d, "model").set("type", "Unigram"); },
                                   {"tokenizer.json: model.type", "'Unigram'", "docs/status.md"});
  expect_refused<UnsupportedError>(
      [](Json& d) {
        d.set("normalizer", object({{"type", "Lowercase"}}));
      },
      {"normalizer", "'Lowercase'", "docs/status.md"});
  expect_refused<UnsupportedError>(
      [](Json& d) {
        d.set("pre_tokenizer", object({{"type", "UnicodeScripts"}}));
      },
      {"pre_tokenizer", "'UnicodeScripts'", "docs/status.md"});
  expect_refused<DataError>(
      [](Json& d) {
        d.set("pre_tokenizer", object({{"type", "Split"}}));
      },
      {"pre_tokenizer.Split.pattern", "String"});
  expect_refused<UnsupportedError>([](Json& d) { d.set("pre_tokenizer", nullptr); },
                                   {"decoder", "ByteLevel"});
  expect_refused<UnsupportedError>(
      [](Json& d) {
        d.set("post_processor", object({{"type", "BertProcessing"}}));
      },
      {"post_processor", "'BertProcessing'"});
  expect_refused<UnsupportedError>(
      [](Json& d) {
        d.set("decoder", object({{"type", "Metaspace"}}));
      },
      {"decoder", "ByteLevel"});
  expect_refused<UnsupportedError>([](Json& d) { member(d, "model").set("dropout", 0.1); },
                                   {"model.dropout"});
  expect_refused<UnsupportedError>(
      [](Json& d) { member(d, "model").set("end_of_word_suffix", "</w>"); },
      {"model.end_of_word_suffix"});
}

TEST(TokenizerJson, NamesWhatIsDamaged) {
  expect_refused<DataError>([](Json& d) { member(member(d, "model"), "vocab").set("zz", -1); },
                            {"tokenizer.json: model.vocab['zz']", "found -1"});
  expect_refused<DataError>(
      [](Json& d) { member(member(d, "model"), "vocab").set("zz", int64_t{1} << 40); },
      {"model.vocab['zz']"});
  expect_refused<DataError>([](Json& d) { member(member(d, "model"), "vocab").set("zz", 5); },
                            {"model.vocab", "id 5", "'zz'"});
  expect_refused<DataError>([](Json& d) { member(member(d, "model"), "vocab").set("zz", "x"); },
                            {"model.vocab['zz']"});
  expect_refused<DataError>(
      [](Json& d) { member(member(d, "model"), "vocab").set(std::string(5000, 'z'), 600); },
      {"model.vocab", "5000"});
  expect_refused<DataError>(
      [](Json& d) { member(member(d, "model"), "merges").push_back("nospace"); },
      {"model.merges[", "nospace"});
  expect_refused<DataError>(
      [](Json& d) { member(member(d, "model"), "merges").push_back("unknown token"); },
      {"merges[", "'unknown'"});
  expect_refused<DataError>([](Json& d) { member(d, "model").set("unk_token", "<nope>"); },
                            {"model.unk_token", "<nope>"});
  expect_refused<DataError>(
      [](Json& d) {
        d.set("added_tokens", Json(Json::Array{object({{"id", 7}})}));
      },
      {"added_tokens[0].content"});
  expect_refused<DataError>(
      [](Json& d) {
        d.set("added_tokens", Json(Json::Array{object({{"id", 7}, {"content", "the"}})}));
      },
      {"added_tokens[0]", "'the'"});
  expect_refused<DataError>([](Json& d) { d.set("model", nullptr); }, {"model"});
  expect_error<DataError>([] { load("[1, 2]"); }, {"tokenizer.json", "expected an object"});
  expect_error<DataError>([] { load("{\"model\": "); }, {"tokenizer.json"});
}

TEST(TokenizerJson, AFarIdDoesNotAskForMemory) {
  expect_refused<DataError>([](Json& d) { member(member(d, "model"), "vocab").set("zz", 3000000); },
                            {"model.vocab['zz']", "found 3000000"});
}

TEST(TokenizerJson, DeepSequencesAreRefused) {
  std::string nested = "{\"type\": \"ByteLevel\"}";
  for (int i = 0; i < 20; ++i)
    nested = "{\"type\": \"Sequence\", \"pretokenizers\": [" + nested + "]}";
  expect_refused<DataError>(
      [&](Json& d) { d.set("pre_tokenizer", io::parse_json(nested, "nested")); }, {"nested lists"});
}

/// Random damage ends in an error of ours or in a tokenizer that works, never in a crash.
TEST(TokenizerJson, SurvivesRandomDamage) {
  const std::string text = small_document().dump();
  const CounterRng rng(23);
  uint64_t counter = 0;
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string damaged = text;
    for (uint64_t edits = 1 + rng.below(counter++, 4); edits > 0; --edits) {
      const std::size_t at = rng.below(counter++, damaged.size());
      const uint64_t kind = rng.below(counter++, 3);
      if (kind == 0)
        damaged[at] = "{}[]\",:0-9aeE\\u\n"[rng.below(counter++, 16)];
      else if (kind == 1)
        damaged.erase(at, 1 + rng.below(counter++, 40));
      else
        damaged.insert(at, damaged.substr(rng.below(counter++, damaged.size()), 12));
    }
    try {
      load(damaged)->encode("the house <|a|> 12\n", {});
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST(TokenizerFolder, TakesSpecialTokensAndTemplateFromTheFilesBesideIt) {
  const TempFolder folder;
  folder.write("tokenizer.json", small_document().dump());
  folder.write("tokenizer_config.json",
               R"({"tokenizer_class": "GPT2Tokenizer", "eos_token": {"content": "<|end|>"},
                   "pad_token": "<|a|>", "chat_template": "old"})");
  folder.write("chat_template.jinja", "new");
  folder.write("generation_config.json", R"({"eos_token_id": [3, 5]})");
  const auto tokenizer = load_tokenizer(folder.path());
  const int32_t end = *tokenizer->token_id("<|end|>");
  EXPECT_EQ(tokenizer->eos_id(), end);
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer->pad_id(), tokenizer->token_id("<|a|>"));
  EXPECT_EQ(tokenizer->stop_ids(), (std::vector<int32_t>{3, 5, end}));
  EXPECT_EQ(tokenizer->chat_template_text(), "new");
  const Json config = io::parse_json(tokenizer->tokenizer_config_json(), "config");
  EXPECT_EQ(config.find("tokenizer_class")->as_string(), "PreTrainedTokenizerFast");
  EXPECT_EQ(config.find("pad_token")->as_string(), "<|a|>");
  EXPECT_EQ(tokenizer->tokenizer_json(), small_document().dump());
}

TEST(TokenizerFolder, NamesFileAndKeyOfWrongSettings) {
  const TempFolder folder;
  folder.write("tokenizer.json", small_document().dump());
  folder.write("generation_config.json", R"({"eos_token_id": 4000})");
  expect_error<DataError>([&] { load_tokenizer(folder.path()); },
                          {"generation_config.json: eos_token_id", "found 4000"});
  folder.write("generation_config.json", "{}");
  folder.write("tokenizer_config.json", R"({"eos_token": "<nope>"})");
  expect_error<DataError>([&] { load_tokenizer(folder.path()); },
                          {"tokenizer_config.json: eos_token", "<nope>"});
}

TEST(TokenizerFolder, SaysWhatIsMissing) {
  const TempFolder folder;
  expect_error<MissingInputError>([&] { load_tokenizer(folder.path()); }, {"tokenizer.json"});
  folder.write("spiece.model", "x");
  expect_error<UnsupportedError>([&] { load_tokenizer(folder.path()); },
                                 {"spiece.model", "docs/status.md"});
  folder.write("tokenizer.model", "x");
  expect_error<DataError>([&] { load_tokenizer(folder.path()); },
                          {"tokenizer.model", "SentencePiece model"});
  expect_error<MissingInputError>([&] { load_tokenizer(folder.path() + "/none.gguf"); },
                                  {"none.gguf"});
}

}  // namespace
}  // namespace shardtune::data
