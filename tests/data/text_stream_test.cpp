// Text streamed token by token against the text of all tokens.
#include "data/text_stream.h"

#include <gtest/gtest.h>

#include "data/text_split.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

void expect_streams(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  TextStream stream(tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = stream.push(id);
    EXPECT_EQ(replace_invalid_utf8(piece), piece) << "a piece that is no UTF-8";
    text += piece;
  }
  text += stream.finish();
  EXPECT_EQ(text, tokenizer.decode(ids, {.skip_special = true}));
}

void expect_streams_texts(const Tokenizer& tokenizer) {
  for (const char* text :
       {"Hello, world", "  two spaces", "caf\xC3\xA9 \xE2\x82\xAC 5",
        "\xF0\x9F\x98\x80\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD", "\xE6\x97\xA5\xE6\x9C\xAC", "x\n\n  y"})
    expect_streams(tokenizer, tokenizer.encode(text, {}));
}

TEST(TextStream, GivesTheDecodedTextInWholeCharacters) {
  if (testing::model_path().empty())
    GTEST_SKIP() << "no SmolLM2 file: set SHARDTUNE_MODEL";
  const auto tokenizer = load_tokenizer(testing::model_path());
  expect_streams_texts(*tokenizer);
  // Bytes that are no character, and one that the end cuts.
  std::vector<int32_t> ids = tokenizer->encode("a\x80\xBFz\xE2\x82", {});
  ids.push_back(2);
  expect_streams(*tokenizer, ids);
}

TEST(TextStream, TakesTheSpaceFromTheBeginningAsDecodersDo) {
  const std::string path = testing::shared("tokenizer_vocabs/ggml-vocab-llama-spm.gguf");
  if (!testing::fs::exists(path))
    GTEST_SKIP() << path << " is not there";
  const auto tokenizer = load_tokenizer(path);
  expect_streams_texts(*tokenizer);
}

}  // namespace
}  // namespace shardtune::data
