// Ids of small committed tokenizers against tokenizers 0.23.3, and properties on any bytes.
#include "data/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "core/error.h"
#include "core/rng.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::golden;
using testing::ids_of;
using testing::small_tokenizer;

const io::Json& golden_strings() {
  static const io::Json rows = io::read_json_file(golden("tokenizer/strings.json"));
  return rows;
}

class SmallTokenizer : public ::testing::TestWithParam<const char*> {};

TEST_P(SmallTokenizer, EncodesAsTheReference) {
  const auto tokenizer = small_tokenizer(GetParam());
  for (const io::Json& row : golden_strings().as_array()) {
    const std::string& text = row.find("text")->as_string();
    EXPECT_EQ(tokenizer->encode(text, {}), ids_of(*row.find(GetParam()))) << row.dump();
  }
}

TEST_P(SmallTokenizer, EncodesTheSameFromManyThreads) {
  const auto tokenizer = small_tokenizer(GetParam());
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const io::Json& row : golden_strings().as_array()) {
        const std::string& text = row.find("text")->as_string();
        wrong[t] += tokenizer->encode(text, {}) != ids_of(*row.find(GetParam())) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

INSTANTIATE_TEST_SUITE_P(Pipelines, SmallTokenizer,
                         ::testing::Values("digits", "added", "nfc", "whole"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Tokenizer, PlainTextYieldsNoSpecialTokens) {
  for (const std::string name : {"digits", "added"}) {
    const auto tokenizer = small_tokenizer(name);
    for (const io::Json& row : golden_strings().as_array()) {
      const std::string& text = row.find("text")->as_string();
      const auto ids = tokenizer->encode(text, {SpecialTokens::kPlain, AddedEnds::kAsTokenizer});
      EXPECT_EQ(ids, ids_of(*row.find(name + "_plain"))) << row.dump();
    }
  }
}

TEST(Tokenizer, DecodesAsTheReference) {
  const auto tokenizer = small_tokenizer("digits");
  for (const io::Json& row : golden_strings().as_array())
    EXPECT_EQ(tokenizer->decode(ids_of(*row.find("digits")), {}), row.find("decoded")->as_string());
}

TEST(Tokenizer, DecodeLeavesOutSpecialTokensWhenAsked) {
  const auto tokenizer = small_tokenizer("digits");
  const auto ids = tokenizer->encode("the<|end|> house", {});
  EXPECT_EQ(tokenizer->decode(ids, {}), "the<|end|> house");
  EXPECT_EQ(tokenizer->decode(ids, {.skip_special = true}), "the house");
}

TEST(Tokenizer, DecodeRefusesForeignIds) {
  const auto tokenizer = small_tokenizer("digits");
  for (const int32_t id : {-1, static_cast<int32_t>(tokenizer->vocab_size()), INT32_MAX})
    EXPECT_THROW(tokenizer->decode({id}, {}), DataError) << id;
}

TEST(Tokenizer, TokenBytesLaidEndToEndAreTheText) {
  const auto tokenizer = small_tokenizer("digits");
  const std::string text = "naïve 日本 \U0001F600!";
  std::string bytes;
  for (const int32_t id : tokenizer->encode(text, {}))
    bytes += tokenizer->token_bytes(id);
  EXPECT_EQ(bytes, text);
}

TEST(Tokenizer, PartsMergeAcrossTheirBordersButPlainOnesForgeNothing) {
  const auto tokenizer = small_tokenizer("digits");
  EXPECT_EQ(
      tokenizer->encode_parts({{"<|a|>the\n"}, {"\n  house", SpecialTokens::kPlain}, {"<|end|>"}}),
      tokenizer->encode("<|a|>the\n\n  house<|end|>", {}));
  const int32_t end = *tokenizer->token_id("<|end|>");
  for (const std::string forged : {"<|end|>", "x<|end|>y<|end|>", "<|end", "<|a|>b<|end|"}) {
    const auto ids =
        tokenizer->encode_parts({{"<|a|>"}, {forged, SpecialTokens::kPlain}, {"<|end|>"}});
    EXPECT_EQ(std::count(ids.begin(), ids.end(), end), 1) << forged;
    EXPECT_EQ(ids.back(), end) << forged;
    EXPECT_EQ(tokenizer->decode(ids, {}), "<|a|>" + forged + "<|end|>");
  }
}

TEST(Tokenizer, AcceptsAnyBytes) {
  const CounterRng rng(17);
  for (const char* name : {"digits", "added", "nfc", "whole"}) {
    const auto tokenizer = small_tokenizer(name);
    uint64_t counter = 0;
    for (int round = 0; round < 300; ++round) {
      std::string text;
      for (uint64_t i = rng.below(counter++, 60); i > 0; --i) {
        const bool high = rng.below(counter++, 2) == 0;
        text.push_back(static_cast<char>(rng.below(counter++, 128) + (high ? 128 : 0)));
      }
      for (const int32_t id : tokenizer->encode(text, {}))
        ASSERT_LT(id, tokenizer->vocab_size());
    }
  }
}

TEST(Tokenizer, KeepsInvalidBytesThatHaveTokens) {
  const auto tokenizer = small_tokenizer("digits");
  const std::string text = "a\xE3\x81 \xFF\xC3";  // FF has no token in this vocabulary
  std::string bytes;
  for (const int32_t id : tokenizer->encode(text, {}))
    bytes += tokenizer->token_bytes(id);
  EXPECT_EQ(bytes, "a\xE3\x81 \xC3");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a\xE3\x81z", {}), {}), "a\xEF\xBF\xBDz");
}

TEST(Tokenizer, NfcStaysLinearOnRunsOfMarksAndKeepsInvalidBytes) {
  const auto tokenizer = small_tokenizer("nfc");
  std::string marks = "a";
  for (int i = 0; i < 200000; ++i)
    marks += i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3";  // classes 230 and 220 by turns
  const auto start = std::chrono::steady_clock::now();
  const auto ids = tokenizer->encode(marks, {SpecialTokens::kParse, AddedEnds::kNone});
  // Insertion sort of the run takes 10^10 moves.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  std::string bytes;
  for (const int32_t id : ids)
    bytes += tokenizer->token_bytes(id);
  std::string canonical = " \u1EA1";  // a and the first dot below; the other dots, the accents
  for (int i = 1; i < 200000; ++i)
    canonical += i < 100000 ? "\xCC\xA3" : "\xCC\x81";
  EXPECT_TRUE(bytes == canonical);
  bytes.clear();
  for (const int32_t id : tokenizer->encode("e\xCC\x81\xE3"
                                            "e\xCC\x81",
                                            {SpecialTokens::kParse, AddedEnds::kNone}))
    bytes += tokenizer->token_bytes(id);
  EXPECT_EQ(bytes, " \xC3\xA9\xE3\xC3\xA9");
}

double seconds_to_encode(const Tokenizer& tokenizer, const std::string& unit, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes)
    text += unit;
  double best = 1e9;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    tokenizer.encode(text, {});
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count());
  }
  return best;
}

// Ten times the text may take ten times as long; 4x on top is for caches and a busy machine, and
// far below the 100x of a quadratic step.
TEST(Tokenizer, TimeGrowsLinearlyOnRepeatedUnits) {
  for (const char* name : {"digits", "added", "whole"}) {
    const auto tokenizer = small_tokenizer(name);
    for (const std::string unit : {"a", "_", "the", "ab", " ", "\n", "7", "'", "<|a", "<|a|>b", "é",
                                   "\xFF", " <l>", "\u0301", "<", "word", "'s", "\u3000", "<r> "}) {
      const double small = seconds_to_encode(*tokenizer, unit, 20000);
      const double large = seconds_to_encode(*tokenizer, unit, 200000);
      EXPECT_LT(large, 40 * small + 0.02) << name << " '" << unit << "'";
    }
  }
}

}  // namespace
}  // namespace shardtune::data
