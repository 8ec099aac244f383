// Tokenizers written as GGUF metadata and read back: the same ids, or a refusal that says why.
#include "data/gguf_tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using io::Json;
using testing::golden;
using testing::shared;
using testing::small_tokenizer;
using testing::TempFolder;

constexpr const char* kByteConfig = R"({"eos_token": "<|end|>"})";
constexpr const char* kSpmConfig =
    R"({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}x"})";

/// Through a GGUF file without tensors.
std::unique_ptr<Tokenizer> through_gguf(const Tokenizer& tokenizer, int64_t num_rows) {
  const TempFolder folder;
  const std::string path = folder.path() + "/vocabulary.gguf";
  io::write_gguf(path, gguf_tokenizer(tokenizer, num_rows), {});
  return load_tokenizer(path);
}

/// Through a model folder, so that scores and names of splits are lost.
std::unique_ptr<Tokenizer> through_folder(const Tokenizer& tokenizer) {
  const TempFolder folder;
  folder.write("tokenizer.json", tokenizer.tokenizer_json());
  folder.write("tokenizer_config.json", tokenizer.tokenizer_config_json());
  return load_tokenizer(folder.path());
}

/// With its tokenizer.json changed.
std::unique_ptr<Tokenizer> changed(const Tokenizer& tokenizer,
                                   const std::function<void(Json&)>& change) {
  Json document = io::parse_json(tokenizer.tokenizer_json(), "tokenizer.json");
  change(document);
  const TempFolder folder;
  folder.write("tokenizer.json", document.dump());
  folder.write("tokenizer_config.json", tokenizer.tokenizer_config_json());
  return load_tokenizer(folder.path());
}

std::vector<std::string> texts_of(const std::string& file) {
  std::vector<std::string> texts;
  const Json rows = io::read_json_file(golden("tokenizer/" + file));
  const Json* list = rows.is_array() ? &rows : rows.find("rows");
  for (const Json& row : list->as_array())
    texts.push_back(row.find("text")->as_string());
  return texts;
}

void expect_same(const Tokenizer& a, const Tokenizer& b, const std::vector<std::string>& texts) {
  for (const std::string& text : texts)
    ASSERT_EQ(a.encode(text, {}), b.encode(text, {})) << Json(text).dump();
  EXPECT_EQ(a.bos_id(), b.bos_id());
  EXPECT_EQ(a.eos_id(), b.eos_id());
  EXPECT_EQ(a.chat_template_text(), b.chat_template_text());
  EXPECT_NO_THROW(check_same_tokenizer(a, b));
}

std::unique_ptr<Tokenizer> small_spm(const std::string& config) {
  const TempFolder folder;
  folder.write("tokenizer.model", io::read_text_file(golden("tokenizer/small_spm.model"), 1 << 20));
  folder.write("tokenizer_config.json", config);
  return load_tokenizer(folder.path());
}

TEST(GgufTokenizer, SentencePieceGetsScoresFromTheOrderOfItsMerges) {
  const auto model = small_spm(kSpmConfig);
  const auto json = through_folder(*model);
  const auto texts = texts_of("spm.json");
  const auto found = through_gguf(*json, json->vocab_size() + 7);
  expect_same(*json, *found, texts);
  EXPECT_EQ(found->vocab_size(), json->vocab_size() + 7);
  // A BOS is added where the tokenizer adds one.
  EXPECT_EQ(found->encode("", {}), std::vector<int32_t>{*model->bos_id()});
}

TEST(GgufTokenizer, SentencePieceWithoutTheSpaceBeforeAText) {
  const auto model = changed(*small_spm(kSpmConfig), [](Json& document) {
    document.set(
        "normalizer",
        io::parse_json(R"({"type":"Replace","pattern":{"String":" "},"content":"\u2581"})", "t"));
  });
  expect_same(*model, *through_gguf(*model, model->vocab_size()), texts_of("spm.json"));
}

TEST(GgufTokenizer, ByteLevelSplitsGoByTheirNames) {
  const auto base = small_tokenizer("digits", kByteConfig);
  const Json splits = io::read_json_file(golden("tokenizer/splits.json"));
  std::vector<std::string> texts;
  for (const Json& row : splits.find("rows")->as_array())
    texts.push_back(row.find("text")->as_string());
  const Json byte_level =
      io::parse_json(R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})", "t");
  for (const std::string name : {"llama3", "qwen2", "tekken", "bloom"}) {
    const auto tokenizer = changed(*base, [&](Json& document) {
      Json sequence = Json::object();
      sequence.set("type", "Sequence");
      sequence.set("pretokenizers",
                   Json(Json::Array{*splits.find("steps")->find(name), byte_level}));
      document.set("pre_tokenizer", std::move(sequence));
      document.set("normalizer",
                   name == "qwen2" ? io::parse_json(R"({"type":"NFC"})", "t") : Json(nullptr));
      Json model = *document.find("model");
      model.set("ignore_merges", name == "llama3" || name == "tekken");
      document.set("model", std::move(model));
    });
    SCOPED_TRACE(name);
    expect_same(*tokenizer, *through_gguf(*tokenizer, tokenizer->vocab_size()), texts);
  }
}

TEST(GgufTokenizer, RealVocabulariesKeepTheirIds) {
  if (!testing::fs::exists(shared("tokenizer_vocabs")))
    GTEST_SKIP() << "no vocabularies beside the project";
  for (const std::string name : {"llama-spm", "qwen2", "falcon", "gpt-2", "starcoder"}) {
    SCOPED_TRACE(name);
    const std::string path = shared("tokenizer_vocabs/ggml-vocab-" + name + ".gguf");
    const auto original = load_tokenizer(path);
    const auto json = through_folder(*original);
    const auto found = through_gguf(*json, json->vocab_size());
    const std::string cases = io::read_text_file(path + ".inp", 1 << 20);
    const std::string mark = "\n__ggml_vocab_test__\n";
    std::vector<std::string> texts;
    for (size_t begin = 0, end = 0; begin < cases.size(); begin = end + mark.size()) {
      end = std::min(cases.find(mark, begin), cases.size());
      texts.push_back(cases.substr(begin, end - begin));
    }
    EXPECT_GT(texts.size(), 30u);
    expect_same(*json, *found, texts);
    for (const std::string& text : texts)
      ASSERT_EQ(found->encode(text, {}), original->encode(text, {})) << Json(text).dump();
  }
}

void expect_refused(const Tokenizer& tokenizer, const std::vector<std::string>& parts) {
  testing::expect_error<UnsupportedError>(
      [&] { gguf_tokenizer(tokenizer, tokenizer.vocab_size()); }, parts);
}

TEST(GgufTokenizer, RefusesWhatLlamaCppDoesNotKnow) {
  const auto base = small_tokenizer("digits", kByteConfig);
  expect_refused(*small_tokenizer("digits", "{}"), {"end token", "--to hf"});
  expect_refused(*small_tokenizer("nfc", R"({"eos_token": "</s>"})"), {"pre_tokenizer"});
  expect_refused(*changed(*base,
                          [](Json& document) {
                            Json tokens = *document.find("added_tokens");
                            Json token = tokens.as_array()[0];
                            token.set("rstrip", true);
                            tokens.as_array()[0] = std::move(token);
                            document.set("added_tokens", std::move(tokens));
                          }),
                 {"added token", "white space"});
  const auto spm = small_spm(kSpmConfig);
  expect_refused(*changed(*spm,
                          [](Json& document) {
                            document.set("normalizer", nullptr);
                            document.set(
                                "pre_tokenizer",
                                io::parse_json(R"({"type":"Metaspace","replacement":"\u2581",)"
                                               R"("prepend_scheme":"first","split":false})",
                                               "t"));
                          }),
                 {"prepend_scheme 'first'"});
  // Without one of its merges a piece is made in fewer ways than llama.cpp would make it in.
  expect_refused(*changed(*spm,
                          [](Json& document) {
                            Json model = *document.find("model");
                            Json merges = *model.find("merges");
                            merges.as_array().pop_back();
                            model.set("merges", std::move(merges));
                            document.set("model", std::move(model));
                          }),
                 {"list of merges"});
  testing::expect_error<UnsupportedError>([&] { gguf_tokenizer(*base, base->vocab_size() - 1); },
                                          {"518 ids", "517 rows"});
}

TEST(GgufTokenizer, TellsATokenizerThatReadsBackOtherwise) {
  const auto base = small_tokenizer("digits", kByteConfig);
  const auto other = small_tokenizer("digits", R"({"eos_token": "<|a|>"})");
  EXPECT_THROW(check_same_tokenizer(*base, *other), UnsupportedError);
  EXPECT_THROW(check_same_tokenizer(*base, *small_spm(kSpmConfig)), UnsupportedError);
  EXPECT_NO_THROW(check_same_tokenizer(*base, *base));
}

}  // namespace
}  // namespace shardtune::data
