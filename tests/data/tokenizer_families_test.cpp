// Splits and SentencePiece's BPE against tokenizers 0.23.3 and sentencepiece 0.2.3
// (tests/golden/tokenizer/make_families.py), and time on hostile texts.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "core/rng.h"
#include "data/sentencepiece.h"
#include "data/text_split.h"
#include "data/tokenizer_document.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using io::Json;
using testing::golden;
using testing::ids_of;
using testing::shared;
using testing::TempFolder;

const Json& splits_file() {
  static const Json file = io::read_json_file(golden("tokenizer/splits.json"));
  return file;
}

/// The steps of a pre_tokenizer, in front of a ByteLevel without pattern.
std::vector<SplitStep> steps_of(const Json& pre_tokenizer) {
  Json list = Json::array();
  list.push_back(pre_tokenizer);
  list.push_back(
      io::parse_json(R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})", "t"));
  Json sequence = Json::object();
  sequence.set("type", "Sequence");
  sequence.set("pretokenizers", std::move(list));
  Json root = Json::object();
  root.set("pre_tokenizer", std::move(sequence));
  TokenizerSpec spec;
  read_pre_tokenizer({"tokenizer.json", root}, spec);
  return spec.steps;
}

void cut(const std::vector<SplitStep>& steps, std::size_t at, std::string_view text,
         std::vector<int64_t>& lengths) {
  if (at == steps.size()) {
    lengths.push_back(static_cast<int64_t>(text.size()));
    return;
  }
  if (steps[at].pattern != nullptr) {
    for (const std::string_view piece : steps[at].pattern->split(text))
      cut(steps, at + 1, piece, lengths);
    return;
  }
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = steps[at].piece_end(text, begin);
    ASSERT_GT(end, begin);
    cut(steps, at + 1, text.substr(begin, end - begin), lengths);
    begin = end;
  }
}

class Splits : public ::testing::TestWithParam<const char*> {};

TEST_P(Splits, CutAsTheReference) {
  const auto steps = steps_of(*splits_file().find("steps")->find(GetParam()));
  const bool own = std::all_of(steps.begin(), steps.end(),
                               [](const SplitStep& step) { return step.pattern == nullptr; });
  for (const Json& row : splits_file().find("rows")->as_array()) {
    // Characters newer than PCRE2 10.42, and U+180E, which its \s has: only our own splitters know.
    const std::string& text = row.find("text")->as_string();
    if (!own && (text.find("\xE1\xA0\x8E") != std::string::npos ||
                 text.find("\xF0\x91\xAF\xB0") != std::string::npos))
      continue;
    std::vector<int64_t> expected;
    for (const Json& length : row.find(GetParam())->as_array())
      expected.push_back(length.as_integer());
    std::vector<int64_t> lengths;
    cut(steps, 0, text, lengths);
    EXPECT_EQ(lengths, expected) << row.find("text")->dump();
  }
}

INSTANTIATE_TEST_SUITE_P(PreTokenizers, Splits,
                         ::testing::Values("llama3", "qwen2", "tekken", "bloom", "other", "removed",
                                           "previous", "next", "contiguous", "literal", "deepseek",
                                           "punctuation"),
                         [](const auto& info) { return std::string(info.param); });

TEST(SplitPatterns, KnownOnesHaveSplittersOfTheirOwn) {
  for (const char* name : {"llama3", "qwen2", "tekken", "bloom"}) {
    const auto steps = steps_of(*splits_file().find("steps")->find(name));
    ASSERT_EQ(steps.size(), 1u) << name;
    EXPECT_NE(steps[0].piece_end, nullptr) << name;
  }
  EXPECT_NE(steps_of(*splits_file().find("steps")->find("other"))[0].pattern, nullptr);
}

Json regex_split(const std::string& pattern) {
  Json regex = Json::object();
  regex.set("Regex", pattern);
  Json step = Json::object();
  step.set("type", "Split");
  step.set("pattern", std::move(regex));
  step.set("behavior", "Isolated");
  return step;
}

TEST(SplitPatterns, AHostilePatternEndsInAnError) {
  const auto steps = steps_of(regex_split("(a+)+$"));
  const std::string text(40, 'a');
  const auto start = std::chrono::steady_clock::now();
  testing::expect_error<DataError>([&] { steps[0].pattern->split(text + "b"); },
                                   {"pre_tokenizer.Split.pattern", "steps", "nested repetitions"});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  testing::expect_error<DataError>([] { steps_of(regex_split("(a")); },
                                   {"pre_tokenizer.Split.pattern", "'(a'", "at byte"});
  testing::expect_error<DataError>(
      [] { steps_of(regex_split(std::string(200, '(') + std::string(200, ')'))); },
      {"pre_tokenizer.Split.pattern"});
  testing::expect_error<DataError>([] { steps_of(regex_split(std::string(20000, 'a'))); },
                                   {"20000"});
}

const Json& spm_file() {
  static const Json file = io::read_json_file(golden("tokenizer/spm.json"));
  return file;
}

std::unique_ptr<Tokenizer> spm_from_model(const std::string& config) {
  const TempFolder folder;
  folder.write("tokenizer.model", io::read_text_file(golden("tokenizer/small_spm.model"), 1 << 20));
  folder.write("tokenizer_config.json", config);
  return load_tokenizer(folder.path());
}

TEST(SentencePiece, ModelFileGivesTheIdsOfTheLibrary) {
  const auto tokenizer = spm_from_model(R"({"add_bos_token": false})");
  int count = 0;
  for (const Json& row : spm_file().find("rows")->as_array()) {
    if (row.find("model") == nullptr)
      continue;
    ++count;
    EXPECT_EQ(tokenizer->encode(row.find("text")->as_string(), {}), ids_of(*row.find("model")))
        << row.find("text")->dump();
  }
  EXPECT_GT(count, 100);
}

/// The tokenizer.json written from the model file, with the parts of a variant in place.
std::unique_ptr<Tokenizer> spm_variant(const std::string& name) {
  const auto model = spm_from_model("{}");
  Json document = io::parse_json(model->tokenizer_json(), "written");
  for (const auto& [key, value] : spm_file().find("parts")->find(name)->as_object())
    document.set(key, value);
  const TempFolder folder;
  folder.write("tokenizer.json", document.dump());
  return load_tokenizer(folder.path());
}

class SpmVariant : public ::testing::TestWithParam<const char*> {};

TEST_P(SpmVariant, EncodesAndDecodesAsTheReference) {
  const std::string name = GetParam();
  const auto tokenizer = spm_variant(name);
  for (const Json& row : spm_file().find("rows")->as_array()) {
    const auto ids = ids_of(*row.find(name));
    EXPECT_EQ(tokenizer->encode(row.find("text")->as_string(), {}), ids)
        << row.find("text")->dump();
    if (const Json* decoded = row.find(name + "_decoded")) {
      EXPECT_EQ(tokenizer->decode(ids, {}), decoded->as_string());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Files, SpmVariant, ::testing::Values("prepend", "first", "never", "words"),
                         [](const auto& info) { return std::string(info.param); });

TEST(SentencePiece, AStretchInsideATextGetsNoPrefix) {
  const auto tokenizer = spm_variant("prepend");
  const auto whole = tokenizer->encode_parts({{"the house"}});
  auto joined = tokenizer->encode_parts({{"the"}});
  const auto rest = tokenizer->encode_parts({{" house"}}, TextStart::kInside);
  joined.insert(joined.end(), rest.begin(), rest.end());
  EXPECT_EQ(joined, whole);
}

TEST(SentencePiece, DamagedModelFilesAreRefused) {
  const std::string bytes = io::read_text_file(golden("tokenizer/small_spm.model"), 1 << 20);
  const CounterRng rng(29);
  uint64_t counter = 0;
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string damaged = bytes;
    if (rng.below(counter++, 3) == 0)
      damaged.resize(rng.below(counter++, damaged.size()));
    for (uint64_t edits = rng.below(counter++, 4); edits > 0 && !damaged.empty(); --edits) {
      const std::size_t at = rng.below(counter++, damaged.size());
      damaged[at] = static_cast<char>(rng.below(counter++, 256));
    }
    try {
      TokenizerSpec spec;
      spec.where = "tokenizer.model";
      fill_sentencepiece_spec(parse_sentencepiece_model(damaged, "tokenizer.model"), spec);
      make_bpe_tokenizer(std::move(spec))->encode("the house 12\n", {});
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 30);
  testing::expect_error<DataError>([] { parse_sentencepiece_model("\x0a\xff", "m"); },
                                   {"m: byte", "SentencePiece"});
}

TEST(RealVocabularies, EncodeEveryLineOfTheCorporaAsTheReference) {
  if (!testing::fs::exists(shared("corpora")) || !testing::fs::exists(shared("tokenizer_vocabs")))
    GTEST_SKIP() << "no corpora or vocabularies beside the project";
  std::string loaded;
  std::unique_ptr<Tokenizer> tokenizer;
  const Json entries = io::read_json_file(golden("tokenizer/vocabularies.json"));
  for (const Json& entry : entries.as_array()) {
    const std::string& vocabulary = entry.find("vocabulary")->as_string();
    if (vocabulary != loaded)
      tokenizer = load_tokenizer(shared("tokenizer_vocabs/ggml-vocab-" + vocabulary + ".gguf"));
    loaded = vocabulary;
    const std::string& name = entry.find("file")->as_string();
    const std::string text = io::read_text_file(shared("corpora/" + name), 1ll << 30);
    io::Sha256 digest;
    int64_t num_ids = 0;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const auto ids = tokenizer->encode(std::string_view(text).substr(begin, end - begin),
                                         {SpecialTokens::kParse, AddedEnds::kNone});
      digest.update(std::as_bytes(std::span(ids)));
      num_ids += static_cast<int64_t>(ids.size());
      begin = end + 1;
    }
    EXPECT_EQ(num_ids, entry.find("ids")->as_integer()) << vocabulary << " " << name;
    EXPECT_EQ(digest.hex_digest(), entry.find("sha256")->as_string()) << vocabulary << " " << name;
  }
}

/// R8: texts of one unit repeated, which a splitter or merger that goes back would take for ever
/// on. The figures are measured by bench/data/tokenizer_bench; here only that no time explodes.
TEST(RealVocabularies, RepeatedUnitsStayLinear) {
  if (!testing::fs::exists(shared("tokenizer_vocabs")))
    GTEST_SKIP() << "no vocabularies beside the project";
  for (const char* name : {"gpt-2", "qwen2", "falcon", "llama-spm"}) {
    const auto tokenizer =
        load_tokenizer(shared(std::string("tokenizer_vocabs/ggml-vocab-") + name + ".gguf"));
    for (const std::string& unit : testing::repeated_units()) {
      std::string text;
      while (text.size() < 200'000)
        text += unit;
      const auto start = std::chrono::steady_clock::now();
      const auto ids = tokenizer->encode(text, {SpecialTokens::kPlain, AddedEnds::kNone});
      // A tenth of a second at 2 MB/s; quadratic work takes minutes.
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4))
          << name << " " << io::Json(replace_invalid_utf8(unit)).dump();
      if (std::string_view(name) == "gpt-2") {  // has a token for every byte, and no normaliser
        std::string bytes;
        for (const int32_t id : ids)
          bytes += tokenizer->token_bytes(id);
        EXPECT_TRUE(bytes == text) << io::Json(replace_invalid_utf8(unit)).dump();
      }
    }
  }
}

/// R9: any text comes back from its ids.
TEST(RealVocabularies, DecodeWhatTheyEncode) {
  if (!testing::fs::exists(shared("tokenizer_vocabs")))
    GTEST_SKIP() << "no vocabularies beside the project";
  const CounterRng rng(31);
  uint64_t counter = 0;
  for (const char* name : {"gpt-2", "llama-spm"}) {
    const auto tokenizer =
        load_tokenizer(shared(std::string("tokenizer_vocabs/ggml-vocab-") + name + ".gguf"));
    for (int round = 0; round < 2000; ++round) {
      std::string text;
      for (uint64_t i = rng.below(counter++, 40); i > 0; --i) {
        const uint64_t kind = rng.below(counter++, 4);
        const uint64_t limit = kind < 2 ? 0x80 : kind == 2 ? 0x3000 : 0x110000;
        const auto point = static_cast<int32_t>(rng.below(counter++, limit));
        if (point < 0xD800 || point >= 0xE000)
          append_code_point(text, point);
        if (kind == 0 && limit == 0x80 && rng.below(counter++, 8) == 0)
          text.push_back(static_cast<char>(0x80 + rng.below(counter++, 128)));  // no UTF-8
      }
      const auto ids = tokenizer->encode(text, {SpecialTokens::kPlain, AddedEnds::kNone});
      std::string bytes;
      for (const int32_t id : ids)
        bytes += tokenizer->token_bytes(id);
      if (std::string_view(name) == "llama-spm") {
        if (!text.empty())
          bytes.erase(0, 1);  // the space before the text
        for (std::size_t at; (at = text.find("\xE2\x96\x81")) != std::string::npos;)
          text.replace(at, 3, " ");  // the mark of spaces is one
      }
      ASSERT_EQ(bytes, text) << name;
    }
  }
}

}  // namespace
}  // namespace shardtune::data
