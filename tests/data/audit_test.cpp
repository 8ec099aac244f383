#include "data/audit.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::expect_error;
using testing::TempFolder;

std::unique_ptr<Tokenizer> chat_tokenizer() {
  const TempFolder folder;
  std::string text = io::read_text_file(testing::golden("tokenizer/small_digits.json"), 1 << 24);
  for (const auto& [from, to] : {std::pair<std::string, std::string>{"<|a|>b", "<|x|>"},
                                 {"<|a|>", "<|im_start|>"},
                                 {"<|end|>", "<|im_end|>"}})
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
      text.replace(at, from.size(), to);
  folder.write("tokenizer.json", text);
  folder.write("tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  return load_tokenizer(folder.path());
}

/// "role(text)" of runs of tokens with one role.
std::string roles_text(const Record& record, const Sample& sample, const Tokenizer& tokenizer,
                       const ChatTemplate* chat) {
  const auto roles = token_roles(record, sample, tokenizer, chat);
  EXPECT_EQ(roles.size(), sample.ids.size());
  std::string text;
  for (std::size_t i = 0; i < roles.size(); ++i) {
    if (i == 0 || roles[i] != roles[i - 1])
      text += std::string(i == 0 ? "" : ")") + std::string(name_of(roles[i])) + "(";
    text += tokenizer.token_bytes(sample.ids[i]);
  }
  return text + ")";
}

Record conversation() {
  Record record;
  record.messages = {{"system", "s"},
                     {"user", "1 <|im_end|> q"},
                     {"assistant", "an answer"},
                     {"tool", "2"},
                     {"assistant", "a"}};
  return record;
}

TEST(TokenRoles, FollowTheMessages) {
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("chatml", *tokenizer);
  const Record record = conversation();
  const Sample sample = tokenize_record(record, *tokenizer, chat.get(), TrainOn::kAssistant);
  EXPECT_EQ(roles_text(record, sample, *tokenizer, chat.get()),
            "template(<|im_start|>system\n)system(s)template(<|im_end|>\n<|im_start|>user\n)"
            "user(1 <|im_end|> q)template(<|im_end|>\n<|im_start|>assistant\n)"
            "assistant(an answer<|im_end|>)template(\n<|im_start|>tool\n)tool(2)"
            "template(<|im_end|>\n<|im_start|>assistant\n)assistant(a<|im_end|>)template(\n)");
  for (const auto& [role, trained] :
       {std::pair(TokenRole::kAssistant, true), std::pair(TokenRole::kTemplate, false)}) {
    const auto roles = token_roles(record, sample, *tokenizer, chat.get());
    for (std::size_t i = 0; i < roles.size(); ++i) {
      if (roles[i] == role) {
        EXPECT_EQ(sample.trained[i] != 0, trained) << i;
      }
    }
  }
}

TEST(TokenRoles, OfRawRecordsTextsAndCutSamples) {
  const auto tokenizer = chat_tokenizer();
  Record record;
  record.messages = {{"user", "prompt"}, {"assistant", " text"}};
  record.raw = true;
  Sample sample = tokenize_record(record, *tokenizer, nullptr, TrainOn::kCompletion);
  EXPECT_EQ(roles_text(record, sample, *tokenizer, nullptr),
            "user(prompt)assistant( text<|im_end|>)");
  sample.ids.resize(3);
  sample.trained.resize(3);
  EXPECT_EQ(token_roles(record, sample, *tokenizer, nullptr).size(), 3u);
  Record text;
  text.text = "words";
  sample = tokenize_record(text, *tokenizer, nullptr, TrainOn::kAll);
  EXPECT_EQ(roles_text(text, sample, *tokenizer, nullptr), "text(words<|im_end|>)");
}

/// SmolLM2's vocabulary has no token for some bytes: they vanish, and roles stay in step.
TEST(TokenRoles, StayInStepWhereBytesVanish) {
  if (testing::model_path().empty())
    GTEST_SKIP() << "no SmolLM2 file: set SHARDTUNE_MODEL";
  const auto tokenizer = load_tokenizer(testing::model_path());
  const auto chat = make_chat_template("auto", *tokenizer);
  Record record;
  record.messages = {{"user", "a\x04\x06\x13 b\x16"}, {"assistant", "\xF3\xA0\x80\x81 done"}};
  const Sample sample = tokenize_record(record, *tokenizer, chat.get(), TrainOn::kAssistant);
  const auto roles = token_roles(record, sample, *tokenizer, chat.get());
  for (std::size_t i = 0; i < roles.size(); ++i)
    EXPECT_EQ(roles[i] == TokenRole::kAssistant, sample.trained[i] != 0) << i;
}

TEST(DatasetAudit, CountsRolesAnswersAndTheirEnds) {
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("chatml", *tokenizer);
  Dataset dataset;
  dataset.records = {conversation()};
  Sample whole = tokenize_record(dataset.records[0], *tokenizer, chat.get(), TrainOn::kAssistant);
  Sample cut = whole;
  while (cut.trained.back() == 0 || tokenizer->decode({cut.ids.back()}, {}) == "<|im_end|>") {
    cut.ids.pop_back();
    cut.trained.pop_back();
  }
  dataset.samples = {whole, cut};
  const DatasetAudit audit = audit_dataset(dataset, *tokenizer, chat.get());
  EXPECT_EQ(audit.num_runs, 4);
  EXPECT_EQ(audit.num_ended_runs, 3);
  int64_t tokens = 0;
  int64_t trained = 0;
  for (const RoleCount& count : audit.roles) {
    tokens += count.num_tokens;
    trained += count.num_trained;
  }
  EXPECT_EQ(tokens, static_cast<int64_t>(whole.ids.size() + cut.ids.size()));
  const auto& assistant = audit.roles[static_cast<std::size_t>(TokenRole::kAssistant)];
  EXPECT_EQ(assistant.num_trained, trained);
  EXPECT_EQ(assistant.num_tokens, trained);
  EXPECT_EQ(audit.roles[static_cast<std::size_t>(TokenRole::kSystem)].num_tokens, 2);
}

TEST(DatasetAudit, RefusesDataWithoutATrainedEnd) {
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("chatml", *tokenizer);
  const TempFolder folder;
  const std::string line =
      R"({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "0123456789"}]})";
  DatasetOptions options;
  options.files = {{folder.write("a.jsonl", line + "\n" + line + "\n"), "auto", {}}};
  const auto check = [&](int64_t max_length) {
    options.max_length = max_length;
    require_trained_end(load_dataset(options, *tokenizer, chat.get()), *tokenizer, "data.train",
                        max_length);
  };
  const Record record = read_records(options.files[0]).at(0);
  const auto length = static_cast<int64_t>(
      tokenize_record(record, *tokenizer, chat.get(), TrainOn::kCompletion).ids.size());
  EXPECT_NO_THROW(check(length));
  EXPECT_NO_THROW(check(length - 1));  // the line end behind the end token
  expect_error<DataError>(
      [&] { check(length - 2); },
      {"data.train", "end token (<|im_end|>)", "none in 2", "max_length", "Raise data.max_length"});
  // A document goes on from sample to sample: its end is not missed.
  options.files = {{folder.write("a.txt", "0123456789 0123456789"), "auto", {}}};
  EXPECT_NO_THROW(check(4));
}

}  // namespace
}  // namespace shardtune::data
