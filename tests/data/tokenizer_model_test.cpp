// Real vocabularies: SmolLM2 against tokenizers, and those of llama.cpp with its expected ids.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <sstream>

#include "core/error.h"
#include "data/tokenizer.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::golden;
using testing::ids_of;
using testing::shared;

class SmolLm2Tokenizer : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::model_path().empty())
      GTEST_SKIP() << "no SmolLM2 file: set SHARDTUNE_MODEL";
    tokenizer_ = load_tokenizer(testing::model_path());
  }
  std::vector<int32_t> encode(const std::string& text) const {
    return tokenizer_->encode(text, {});
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(SmolLm2Tokenizer, GivesTheGoldenIds) {
  EXPECT_EQ(encode("The capital of France is Paris."),
            (std::vector<int32_t>{504, 3575, 282, 4649, 314, 7042, 30}));
  EXPECT_EQ(encode("In 2024, the model had 135M parameters.\n\n  def f(x):\n    return x  # 42"),
            (std::vector<int32_t>{788, 216, 34,   32,   34,   36,  28,   260, 1743, 761, 216,
                                  33,  35,  37,   61,   6116, 30,  8866, 753, 275,  24,  104,
                                  727, 472, 1003, 1792, 216,  907, 216,  36,  34}));
  EXPECT_EQ(encode("  1"), (std::vector<int32_t>{256, 33}));
}

TEST_F(SmolLm2Tokenizer, KnowsItsTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 49152);
  EXPECT_EQ(tokenizer_->bos_id(), 1);
  EXPECT_EQ(tokenizer_->eos_id(), 2);
  EXPECT_EQ(tokenizer_->pad_id(), 2);
  EXPECT_EQ(tokenizer_->stop_ids(), std::vector<int32_t>{2});
  EXPECT_TRUE(tokenizer_->is_special(16));
  EXPECT_FALSE(tokenizer_->is_special(17));
  EXPECT_EQ(encode("<|im_start|>x<|im_end|>").front(), 1);
}

TEST_F(SmolLm2Tokenizer, EncodesRandomTextAsTheReference) {
  const io::Json rows = io::read_json_file(golden("tokenizer/strings.json"));
  for (const io::Json& row : rows.as_array())
    EXPECT_EQ(encode(row.find("text")->as_string()), ids_of(*row.find("model"))) << row.dump();
}

TEST_F(SmolLm2Tokenizer, EncodesEveryLineOfTheCorporaAsTheReference) {
  if (!testing::fs::exists(shared("corpora")))
    GTEST_SKIP() << "no corpora beside the project";
  const io::Json entries = io::read_json_file(golden("tokenizer/corpora.json"));
  for (const io::Json& entry : entries.as_array()) {
    const std::string& name = entry.find("file")->as_string();
    const std::string text = io::read_text_file(shared("corpora/" + name), 1ll << 30);
    io::Sha256 digest;
    int64_t num_ids = 0, num_lines = 0;
    for (std::size_t begin = 0; begin <= text.size(); ++num_lines) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const auto ids = encode(text.substr(begin, end - begin));
      digest.update(std::as_bytes(std::span(ids)));
      num_ids += static_cast<int64_t>(ids.size());
      begin = end + 1;
    }
    EXPECT_EQ(num_lines, entry.find("lines")->as_integer()) << name;
    EXPECT_EQ(num_ids, entry.find("ids")->as_integer()) << name;
    EXPECT_EQ(digest.hex_digest(), entry.find("sha256")->as_string()) << name;
  }
}

TEST_F(SmolLm2Tokenizer, DecodesWhatItEncodes) {
  for (const std::string text :
       {"Hello, world!\n\n  x = 1", "naïve 日本語 👩‍👩‍👧", "tab\tand\r\n"})
    EXPECT_EQ(tokenizer_->decode(encode(text), {}), text);
}

TEST_F(SmolLm2Tokenizer, ExportsAFolderWithTheSameIds) {
  const testing::TempFolder folder;
  folder.write("tokenizer.json", tokenizer_->tokenizer_json());
  folder.write("tokenizer_config.json", tokenizer_->tokenizer_config_json());
  const auto again = load_tokenizer(folder.path());
  const io::Json rows = io::read_json_file(golden("tokenizer/strings.json"));
  for (const io::Json& row : rows.as_array())
    EXPECT_EQ(again->encode(row.find("text")->as_string(), {}), ids_of(*row.find("model")));
  EXPECT_EQ(again->bos_id(), 1);
  EXPECT_EQ(again->stop_ids(), std::vector<int32_t>{2});
  EXPECT_EQ(again->chat_template_text(), tokenizer_->chat_template_text());
  const io::Json config = io::parse_json(again->tokenizer_config_json(), "config");
  EXPECT_EQ(config.find("tokenizer_class")->as_string(), "PreTrainedTokenizerFast");
  EXPECT_EQ(config.find("model_max_length")->as_integer(), 8192);
}

class LlamaCppVocabulary : public ::testing::TestWithParam<const char*> {};

TEST_P(LlamaCppVocabulary, GivesItsExpectedIds) {
  const std::string path =
      shared(std::string("tokenizer_vocabs/ggml-vocab-") + GetParam() + ".gguf");
  if (!testing::fs::exists(path))
    GTEST_SKIP() << "no vocabularies beside the project";
  const auto tokenizer = load_tokenizer(path);
  const std::string texts = io::read_text_file(path + ".inp", 1 << 20);
  std::istringstream expected(io::read_text_file(path + ".out", 1 << 20));
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::string line;
  int count = 0;
  for (std::size_t begin = 0; std::getline(expected, line); ++count) {
    const std::size_t end = std::min(texts.find(separator, begin), texts.size());
    const std::string text = texts.substr(begin, end - begin);
    begin = std::min(end + separator.size(), texts.size());
    std::istringstream numbers(line);
    std::vector<int32_t> ids;
    for (int32_t id = 0; numbers >> id;)
      ids.push_back(id);
    EXPECT_EQ(tokenizer->encode(text, {SpecialTokens::kParse, AddedEnds::kNone}), ids)
        << "'" << text << "'";
  }
  EXPECT_GT(count, 40);
}

INSTANTIATE_TEST_SUITE_P(Files, LlamaCppVocabulary,
                         ::testing::Values("gpt-2", "starcoder", "qwen2", "falcon", "llama-spm"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace shardtune::data
