// Questions with choices: what is a choice's own token, and what is wrong with a record.
#include "data/choices.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "data/chat_template.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::TempFolder;

std::vector<int32_t> trained_ids(const Sample& sample) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < sample.ids.size(); ++i) {
    if (sample.trained[i] != 0)
      ids.push_back(sample.ids[i]);
  }
  return ids;
}

class Choices : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::model_path().empty())
      GTEST_SKIP() << "no SmolLM2 file: set SHARDTUNE_MODEL";
    tokenizer_ = load_tokenizer(testing::model_path());
    chat_ = make_chat_template("smollm2", "", {});
  }
  std::vector<ChoiceQuestion> read(const std::string& text, ChoiceOptions options = {}) const {
    options.path = folder_.write("questions.jsonl", text);
    return read_choices(options, *tokenizer_, chat_.get());
  }
  void expect_refused(const std::string& text, const std::vector<std::string>& parts,
                      const ChoiceOptions& options = {}) const {
    try {
      read(text, options);
      ADD_FAILURE() << "expected an error for " << text;
    } catch (const DataError& error) {
      for (const std::string& part : parts)
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
            << "'" << part << "' in: " << error.what();
    }
  }

  TempFolder folder_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
};

// Pairs encoded by lm-evaluation-harness itself (tests/golden/choice/generate.py).
TEST_F(Choices, TokensAreThoseOfLmEvaluationHarness) {
  const io::Json rows = io::read_json_file(testing::golden("choice/pairs.json"));
  for (const io::Json& row : rows.as_array()) {
    io::Json question = io::Json::object();
    question.set("query", *row.find("query"));
    question.set("choices", *row.find("choices"));
    question.set("gold", 0);
    const ChoiceQuestion found = read(question.dump()).at(0);
    for (size_t i = 0; i < found.samples.size(); ++i) {
      const io::Json& expected = row.find("pairs")->as_array()[i];
      EXPECT_EQ(trained_ids(found.samples[i]), testing::ids_of(*expected.find("continuation")))
          << row.find("query")->dump() << " " << i;
      const auto& ids = found.samples[i].ids;
      const auto context = testing::ids_of(*expected.find("context"));
      EXPECT_EQ(
          std::vector<int32_t>(ids.begin(), ids.end() - std::ssize(trained_ids(found.samples[i]))),
          context)
          << row.find("query")->dump() << " " << i;
    }
  }
}

TEST_F(Choices, OfTurnsTheChoiceIsTheAnswer) {
  const auto questions = read(
      R"([{"messages": [{"role": "user", "content": "2 + 2?"}], "choices": ["4", "5"], "gold": "5"},
          {"query": "2 + 2?", "choices": ["4", "5"], "gold": 1}])",
      {"", 0, 1024, true});
  ASSERT_EQ(questions.size(), 2u);
  for (const ChoiceQuestion& question : questions) {
    EXPECT_EQ(question.gold, 1);
    const auto prompt =
        encode_chat({{"user", "2 + 2?"}}, *tokenizer_, *chat_, GenerationPrompt::kAppend);
    for (const Sample& sample : question.samples) {
      EXPECT_EQ(std::vector<int32_t>(sample.ids.begin(), sample.ids.begin() + std::ssize(prompt)),
                prompt);
      EXPECT_EQ(trained_ids(sample).size(), 1u);
      EXPECT_EQ(sample.ids.size(), prompt.size() + 1);
    }
  }
  EXPECT_EQ(questions[1].line, 2);
}

TEST_F(Choices, TellsWhatIsWrongWithARecord) {
  const std::string head = R"({"query": "q", )";
  expect_refused("", {"questions.jsonl", "expected questions, found none"});
  expect_refused("{}", {"questions.jsonl:1", "choices", "nothing"});
  expect_refused(head + R"("choices": "a", "gold": 0})", {"choices", "string"});
  expect_refused(head + R"("choices": ["a"], "gold": 0})", {"choices", "a shorter one"});
  expect_refused(head + R"("choices": ["a", 7], "gold": 0})", {"choices", "integer"});
  expect_refused(head + R"("choices": ["a", ""], "gold": 0})", {"choices", "an empty one"});
  expect_refused(head + R"("choices": ["a", "b"]})", {"gold", "nothing"});
  expect_refused(head + R"("choices": ["a", "b"], "gold": 2})", {"gold", "0 to 1", "found 2"});
  expect_refused(head + R"("choices": ["a", "b"], "gold": -1})", {"gold", "found -1"});
  expect_refused(head + R"("choices": ["a", "b"], "gold": "c"})", {"gold", "\"c\""});
  expect_refused(head + R"("choices": ["a", "b"], "gold": 0.0})", {"gold"});
  expect_refused(R"({"choices": ["a", "b"], "gold": 0})", {"query"});
  expect_refused(head + R"("choices": ["a", "b c d e f g h"], "gold": 0})",
                 {"query", "at most 6 tokens"}, {"", 0, 6, false});
  EXPECT_EQ(read(head +
                     R"("choices": ["a", "b"], "gold": 0})"
                     "\n" +
                     head + "}",
                 {"", 1, 64, false})
                .size(),
            1u)
      << "only the first is asked for";
}

}  // namespace
}  // namespace shardtune::data
