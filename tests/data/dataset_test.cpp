#include "data/dataset.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/parallel_for.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::expect_error;
using testing::TempFolder;

/// Writes the small vocabulary with other names of its special tokens <|a|>b, <|a|> and <|end|>.
void write_tokenizer(const TempFolder& folder, const std::vector<std::string>& names) {
  std::string text = io::read_text_file(testing::golden("tokenizer/small_digits.json"), 1 << 24);
  const std::string from[] = {"<|a|>b", "<|a|>", "<|end|>"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (std::size_t at = 0; (at = text.find(from[i], at)) != std::string::npos;
         at += names[i].size())
      text.replace(at, from[i].size(), names[i]);
  }
  folder.write("tokenizer.json", text);
  folder.write("tokenizer_config.json", "{\"eos_token\": \"" + names.back() + "\"}");
}

/// With ChatML's marks among the special tokens.
std::unique_ptr<Tokenizer> chat_tokenizer() {
  const TempFolder folder;
  write_tokenizer(folder, {"<|x|>", "<|im_start|>", "<|im_end|>"});
  return load_tokenizer(folder.path());
}

/// Text of the trained tokens, those between put in as "|".
std::string trained_text(const Sample& sample, const Tokenizer& tokenizer) {
  std::string text;
  for (std::size_t i = 0; i < sample.ids.size(); ++i) {
    if (sample.trained[i])
      text += tokenizer.token_bytes(sample.ids[i]);
    else if (!text.empty() && text.back() != '|')
      text += '|';
  }
  return text;
}

std::vector<Record> read(const std::string& name, const std::string& text,
                         const std::string& format = "auto",
                         std::vector<std::pair<std::string, std::string>> columns = {}) {
  const TempFolder folder;
  return read_records({folder.write(name, text), format, std::move(columns)});
}

TEST(DataFormats, ReadsEachFormatByItsKeys) {
  const auto completion = read("a.jsonl", "\n{\"prompt\": \"p\", \"completion\": \"c\"}\r\n\n");
  ASSERT_EQ(completion.size(), 1u);
  EXPECT_EQ(completion[0].line, 2);
  EXPECT_EQ(completion[0].messages[0].role, "user");
  EXPECT_EQ(completion[0].messages[1].content, "c");
  EXPECT_TRUE(completion[0].raw);

  const auto chat = read("a.json", R"([
    {"messages": [{"role": "user", "content": "q]"},
                  {"role": "assistant", "content": "\"a\""}]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}])");
  ASSERT_EQ(chat.size(), 2u);
  EXPECT_EQ(chat[0].messages[0].content, "q]");
  EXPECT_EQ(chat[1].line, 4);

  const auto text = read("a.jsonl", "\xEF\xBB\xBF{\"text\": \"one\"}\n{\"text\": \"two\"}");
  ASSERT_EQ(text.size(), 2u);
  EXPECT_EQ(text[1].text, "two");
  EXPECT_EQ(read("a.txt", "one\n\ntwo {").at(0).text, "one\n\ntwo {");
}

/// "role: content" of a record's messages.
std::vector<std::string> turns(const Record& record) {
  std::vector<std::string> result;
  for (const Message& message : record.messages)
    result.push_back(message.role + ": " + message.content);
  return result;
}

using Turns = std::vector<std::string>;

TEST(DataFormats, AlpacaJoinsInstructionAndInputAndTakesSystemAndHistory) {
  const auto records = read("a.json", R"([
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Say hi", "input": "", "output": "hi", "system": "Be brief.",
     "history": [["q", "a"]]}])");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(turns(records[0]), (Turns{"user: Add.\n1 2", "assistant: 3"}));
  EXPECT_EQ(turns(records[1]), (Turns{"system: Be brief.", "user: q", "assistant: a",
                                      "user: Say hi", "assistant: hi"}));
  EXPECT_FALSE(records[0].raw);
  const auto mapped = read("a.jsonl", R"({"q": "Add.", "a": "3"})", "alpaca",
                           {{"instruction", "q"}, {"output", "a"}});
  EXPECT_EQ(turns(mapped.at(0)), (Turns{"user: Add.", "assistant: 3"}));
}

TEST(DataFormats, AlpacaInputIsKnownToTheTemplateOfThatName) {
  const auto chat = make_chat_template("alpaca", "", {"", "</s>"});
  const auto render = [&](const std::string& line) {
    return chat->render_text(read("a.jsonl", line).at(0).messages, GenerationPrompt::kNone);
  };
  const std::string with = render(R"({"instruction": "Add.", "input": "1\n2", "output": "3"})");
  EXPECT_NE(with.find("paired with an input"), std::string::npos);
  EXPECT_TRUE(
      with.ends_with("\n\n### Instruction:\nAdd.\n\n### Input:\n1\n2\n\n### Response:3</s>"));
  for (const char* line : {R"({"instruction": "Add.", "input": "", "output": "3"})",
                           R"({"instruction": "", "input": "Add.", "output": "3"})"})
    EXPECT_TRUE(
        render(line).ends_with(" request.\n\n### Instruction:\nAdd.\n\n### Response:3</s>"));
}

TEST(DataFormats, ShareGptTurnsItsRolesIntoOurs) {
  const auto records = read("a.json", R"([{"system": "S", "tools": "[{\"name\": \"f\"}]",
    "conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "call f"},
                      {"from": "observation", "value": "1"}, {"from": "gpt", "value": "one"}]
}])");
  EXPECT_EQ(turns(records.at(0)),
            (Turns{"system: S\n\nYou can call these tools: [{\"name\": \"f\"}]", "user: q",
                   "assistant: call f", "tool: 1", "assistant: one"}));
  const auto plain = read("a.json", R"([{"conversations": [{"from": "system", "value": "S"},
    {"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}], "tools": "[]"}])");
  EXPECT_EQ(turns(plain.at(0)), (Turns{"system: S", "user: q", "assistant: a"}));
}

TEST(DataFormats, OpenAiMessagesMayHaveOtherKeysForRoleAndContent) {
  const auto records =
      read("a.jsonl",
           R"({"m": [{"r": "user", "c": "q"}, {"r": "tool", "c": "1"}, {"r": "model", "c": "a"}]})",
           "openai", {{"messages", "m"}, {"role", "r"}, {"content", "c"}});
  EXPECT_EQ(turns(records.at(0)), (Turns{"user: q", "tool: 1", "assistant: a"}));
}

TEST(DataFormats, TellsAllWrongRecordsAtOnce) {
  std::string text =
      "{\"instruction\": \"i\", \"output\": \"\"}\n"
      "{\"instruction\": \"i\", \"output\": \"o\"}\n"
      "{\"instruction\": 3, \"output\": \"o\"}\n";
  expect_error<DataError>([&] { read("f.jsonl", text); },
                          {"f.jsonl:1: output: expected an answer", "f.jsonl:3: instruction"});
  for (int i = 0; i < 12; ++i)
    text += "{\"instruction\": \"i\"}\n";
  expect_error<DataError>([&] { read("f.jsonl", text); }, {"f.jsonl:4: output", "and 4 more"});
  expect_error<DataError>([&] { read("f.jsonl", "{\"text\": 1}\n{\"text\": "); },
                          {"f.jsonl:1: text", "f.jsonl:2"});
  expect_error<DataError>(
      [] { read("f.jsonl", R"({"conversations": [{"from": "narrator", "value": "x"}]})"); },
      {"f.jsonl:1: conversations[0].from", "'narrator'"});
  expect_error<DataError>(
      [] { read("f.jsonl", R"({"conversations": [{"from": "human", "value": "x"}]})"); },
      {"f.jsonl:1: conversations", "assistant"});
}

TEST(DataFormats, ReadTheRealFiles) {
  if (!testing::fs::exists(testing::shared("corpora")))
    GTEST_SKIP() << "no corpora beside the project";
  for (const auto& [name, count] : {std::pair<const char*, std::size_t>{"alpaca_en_demo.json", 999},
                                    {"glaive_toolcall_en_demo.json", 300},
                                    {"identity.json", 91}}) {
    const auto records =
        read_records({testing::shared(std::string("corpora/") + name), "auto", {}});
    EXPECT_GE(records.size(), count) << name;
  }
}

TEST(DataFormats, ReadsMessagesInCompletionRecordsAndMappedColumns) {
  const std::string row =
      R"({"q": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],)"
      R"( "a": [{"role": "assistant", "content": "c"}]})";
  const auto records = read("a.jsonl", row, "completion", {{"prompt", "q"}, {"completion", "a"}});
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].messages.size(), 3u);
  EXPECT_FALSE(records[0].raw);
  EXPECT_EQ(read("a.jsonl", "{\"question\": \"q\", \"answer\": \"a\"}", "auto",
                 {{"prompt", "question"}, {"completion", "answer"}})
                .size(),
            1u);
}

TEST(DataFormats, ErrorsNameFileLineAndKey) {
  const std::string good = "{\"prompt\": \"p\", \"completion\": \"c\"}\n";
  expect_error<DataError>(
      [&] { read("f.jsonl", good + "\n{\"prompt\": \"p\", \"completion\": 5}"); },
      {"f.jsonl:3: completion: expected a string, found integer. "});
  expect_error<DataError>([&] { read("f.jsonl", good + "{\"prompt\": \"p\"}"); },
                          {"f.jsonl:2: completion: ", "no such key", "prompt"});
  expect_error<DataError>([&] { read("f.jsonl", good + good + "{\"prompt\": "); }, {"f.jsonl:3"});
  expect_error<DataError>([&] { read("f.jsonl", good + "[1]"); },
                          {"f.jsonl:2: expected an object"});
  expect_error<DataError>([&] { read("f.jsonl", "{\"prompt\": \"p\", \"completion\": \"\"}"); },
                          {"f.jsonl:1: completion: expected an answer, found an empty string"});
  expect_error<DataError>([&] { read("f.json", "[\n {\"messages\": [{\"role\": \"user\"}]}]"); },
                          {"f.json:2: messages[0].content: expected a string"});
  expect_error<DataError>(
      [&] { read("f.jsonl", "{\"messages\": [{\"role\": \"critic\", \"content\": \"x\"}]}"); },
      {"f.jsonl:1: messages[0].role: expected system, user, assistant or tool, found 'critic'"});
  expect_error<DataError>(
      [&] { read("f.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}"); },
      {"f.jsonl:1: messages: expected a message of the assistant"});
  expect_error<DataError>([&] { read("f.jsonl", "{\"messages\": []}"); },
                          {"f.jsonl:1: messages", "an empty list"});
  expect_error<DataError>([&] { read("f.json", "[" + good + ","); }, {"f.json:2"});
  expect_error<DataError>([&] { read("f.json", "[" + good); }, {"f.json:2", "cut off"});
  expect_error<DataError>([&] { read("f.json", "[" + good + "] x"); }, {"f.json:2", "more text"});
  expect_error<DataError>([&] { read("f.jsonl", " \n\n"); }, {"f.jsonl: expected records"});
  expect_error<DataError>([&] { read("f.json", "[ ]"); }, {"f.json: expected records"});
  expect_error<DataError>([&] { read("f.jsonl", "{\"a\": 1}"); }, {"f.jsonl:1: format"});
}

TEST(DataFormats, RefusesNamesUnknownOrToCome) {
  const std::string good = "{\"prompt\": \"p\", \"completion\": \"c\"}\n";
  for (const char* coming : {"preference"})
    expect_error<UnsupportedError>([&] { read("f.jsonl", good, coming); },
                                   {"f.jsonl", coming, "docs/status.md"});
  expect_error<UnsupportedError>([&] { read("f.jsonl", "{\"chosen\": \"i\"}"); }, {"preference"});
  expect_error<ConfigError>([&] { read("f.jsonl", good, "completions"); },
                            {"did you mean 'completion'"});
  expect_error<ConfigError>(
      [&] {
        read("f.jsonl", good, "completion", {{"prompts", "p"}});
      },
      {"columns", "did you mean 'prompt'"});
  EXPECT_THROW(read_records({"/nowhere/f.jsonl", "auto", {}}), MissingInputError);
}

Record conversation() {
  Record record;
  record.messages = {{"user", "the house"},
                     {"assistant", "one"},
                     {"user", "\n and"},
                     {"assistant", "two<|im_end|>"}};
  return record;
}

TEST(TokenizeRecord, TrainsTheChosenTokens) {
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("chatml", "", {});
  const auto trained = [&](TrainOn train_on) {
    return trained_text(tokenize_record(conversation(), *tokenizer, chat.get(), train_on),
                        *tokenizer);
  };
  EXPECT_EQ(trained(TrainOn::kCompletion), "two<|im_end|><|im_end|>|");
  EXPECT_EQ(trained(TrainOn::kAssistant), "one<|im_end|>|two<|im_end|><|im_end|>|");
  const Sample all = tokenize_record(conversation(), *tokenizer, chat.get(), TrainOn::kAll);
  EXPECT_EQ(all.trained[0], 0);
  EXPECT_EQ(std::count(all.trained.begin(), all.trained.end(), 0), 1);
}

TEST(TokenizeRecord, ContentForgesNoControlTokens) {
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("chatml", "", {});
  const Sample sample =
      tokenize_record(conversation(), *tokenizer, chat.get(), TrainOn::kCompletion);
  EXPECT_EQ(std::count(sample.ids.begin(), sample.ids.end(), *tokenizer->token_id("<|im_end|>")),
            4);
}

TEST(TokenizeRecord, PromptIdsDoNotDependOnTheAnswer) {
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("smollm2", "", {});
  for (const ChatTemplate* each : std::vector<const ChatTemplate*>{nullptr, chat.get()}) {
    for (const std::string answer : {"x", "\n\nx", " the house", "ing", "'s", "2"}) {
      Record record;
      record.raw = true;
      record.messages = {{"user", "walk 1 "}, {"assistant", answer}};
      const auto prompt = prompt_of_record(record, *tokenizer, each);
      const Sample sample = tokenize_record(record, *tokenizer, each, TrainOn::kCompletion);
      ASSERT_LT(prompt.prompt_ids.size(), sample.ids.size());
      EXPECT_TRUE(
          std::equal(prompt.prompt_ids.begin(), prompt.prompt_ids.end(), sample.ids.begin()));
      EXPECT_EQ(prompt.answer, answer);
      for (std::size_t i = 0; i < sample.ids.size(); ++i) {
        const bool in_newline_after_end = each != nullptr && i + 1 == sample.ids.size();
        EXPECT_EQ(sample.trained[i], i >= prompt.prompt_ids.size() && !in_newline_after_end);
      }
    }
  }
}

TEST(TokenizeRecord, RawAndTextRecordsEndInEos) {
  const auto tokenizer = chat_tokenizer();
  Record record;
  record.raw = true;
  record.messages = {{"user", "the"}, {"assistant", " house"}};
  EXPECT_EQ(
      trained_text(tokenize_record(record, *tokenizer, nullptr, TrainOn::kCompletion), *tokenizer),
      " house<|im_end|>");
  Record text;
  text.text = "the house";
  const Sample sample = tokenize_record(text, *tokenizer, nullptr, TrainOn::kCompletion);
  EXPECT_EQ(sample.ids.back(), *tokenizer->eos_id());
  EXPECT_EQ(std::count(sample.trained.begin(), sample.trained.end(), 0), 1);
  record.raw = false;
  EXPECT_THROW(tokenize_record(record, *tokenizer, nullptr, TrainOn::kCompletion), DataError);
}

TEST(TokenizeRecord, BosOfTheTokenizerComesFirstInRawText) {
  const auto tokenizer =
      testing::small_tokenizer("nfc", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  Record text;
  text.text = "the house";
  const Sample sample = tokenize_record(text, *tokenizer, nullptr, TrainOn::kAll);
  EXPECT_EQ(sample.ids, tokenizer->encode("the house", {}));
}

DatasetOptions options_for(const std::string& path, int64_t max_length = 64) {
  DatasetOptions options;
  options.files = {{path, "auto", {}}};
  options.max_length = max_length;
  return options;
}

TEST(TokenizeRecord, TrainsAnswersWithTheirEndByTheTemplateThatTheModelCarries) {
  const io::Json golden = io::read_json_file(testing::golden("chat_template/templates.json"));
  const TempFolder folder;
  write_tokenizer(folder, {"<|end_header_id|>", "<|start_header_id|>", "<|eot_id|>"});
  for (const io::Json& row : golden.find("rows")->as_array()) {
    if (row.find("name")->as_string() == "llama3")
      folder.write("chat_template.jinja", row.find("text")->as_string());
  }
  const auto tokenizer = load_tokenizer(folder.path());
  const auto chat = make_chat_template("auto", *tokenizer);
  EXPECT_EQ(chat->name(), "llama3");
  Record record;
  record.messages = {{"user", "q "}, {"assistant", " a"}, {"user", "r"}, {"assistant", "bb\n"}};
  const auto trained = [&](TrainOn train_on) {
    return trained_text(tokenize_record(record, *tokenizer, chat.get(), train_on), *tokenizer);
  };
  EXPECT_EQ(trained(TrainOn::kAssistant), "a<|eot_id|>|bb<|eot_id|>");
  EXPECT_EQ(trained(TrainOn::kCompletion), "bb<|eot_id|>");
}

TEST(LoadDataset, CountsTokensAndTruncation) {
  const TempFolder folder;
  const auto tokenizer = chat_tokenizer();
  std::string text;
  for (int i = 0; i < 50; ++i)
    text += "{\"prompt\": \"the house\", \"completion\": \"" +
            std::string(static_cast<std::size_t>(i + 1), '7') + "\"}\n";
  const std::string path = folder.write("d.jsonl", text);
  const Dataset whole = load_dataset(options_for(path), *tokenizer, nullptr);
  EXPECT_EQ(whole.stats.num_samples, 50);
  EXPECT_EQ(whole.stats.num_trained_tokens, 50 * 51 / 2 + 50);
  EXPECT_EQ(whole.stats.num_truncated, 0);
  EXPECT_EQ(whole.samples[7].id, 7u);
  EXPECT_EQ(whole.samples[7].record, 7);
  const auto prompt_tokens = static_cast<int64_t>(whole.samples[0].ids.size()) - 2;
  const Dataset cut = load_dataset(options_for(path, prompt_tokens + 11), *tokenizer, nullptr);
  EXPECT_EQ(cut.stats.max_sample_tokens, prompt_tokens + 11);
  EXPECT_EQ(cut.stats.num_truncated, 40);
  EXPECT_EQ(cut.stats.num_truncated_answers, 40);
  expect_error<DataError>(
      [&] { load_dataset(options_for(path, prompt_tokens), *tokenizer, nullptr); },
      {"d.jsonl:1: completion", "max_length"});
}

TEST(LoadDataset, DoesNotDependOnTheNumberOfThreads) {
  const TempFolder folder;
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("smollm2", "", {});
  std::string text;
  for (int i = 0; i < 300; ++i)
    text += "{\"prompt\": \"house " + std::to_string(i) + "\", \"completion\": \"the tree\"}\n";
  const std::string path = folder.write("d.jsonl", text);
  const int threads = num_threads();
  set_num_threads(1);
  const Dataset one = load_dataset(options_for(path, 512), *tokenizer, chat.get());
  set_num_threads(4);
  const Dataset four = load_dataset(options_for(path, 512), *tokenizer, chat.get());
  set_num_threads(threads);
  ASSERT_EQ(one.samples.size(), four.samples.size());
  for (std::size_t i = 0; i < one.samples.size(); ++i)
    EXPECT_EQ(one.samples[i].ids, four.samples[i].ids);
}

TEST(LoadDataset, CutsADocumentIntoSamplesThatLoseNothing) {
  const TempFolder folder;
  const auto tokenizer = chat_tokenizer();
  std::string text;
  for (int i = 0; i < 500; ++i)
    text += "the house " + std::to_string(i) + "\n";
  const Dataset dataset =
      load_dataset(options_for(folder.write("d.txt", text), 100), *tokenizer, nullptr);
  std::vector<int32_t> ids;
  for (const Sample& sample : dataset.samples) {
    EXPECT_LE(sample.ids.size(), 100u);
    EXPECT_EQ(sample.trained[0], 0);
    ids.insert(ids.end(), sample.ids.begin(), sample.ids.end());
  }
  EXPECT_EQ(tokenizer->decode(ids, {}), text + "<|im_end|>");
  EXPECT_EQ(dataset.stats.num_truncated, 0);
}

TEST(LoadDataset, RefusesATemplateWhoseEndTokenTheModelLacks) {
  const TempFolder folder;
  const auto tokenizer = testing::small_tokenizer("digits", R"({"eos_token": "<|end|>"})");
  const auto chat = make_chat_template("chatml", "", {});
  const std::string path = folder.write("d.jsonl", "{\"prompt\": \"p\", \"completion\": \"c\"}\n");
  expect_error<DataError>([&] { load_dataset(options_for(path, 512), *tokenizer, chat.get()); },
                          {"d.jsonl:1: completion", "ends generation", "template"});
}

TEST(LoadDataset, TellsAllUntrainableRecordsAtOnce) {
  const TempFolder folder;
  const auto tokenizer = chat_tokenizer();
  std::string text;
  for (int i = 0; i < 15; ++i)
    text +=
        "{\"prompt\": \"" + std::string(i % 5 == 4 ? 1 : 60, 'x') + "\", \"completion\": \"c\"}\n";
  const std::string path = folder.write("d.jsonl", text);
  expect_error<DataError>([&] { load_dataset(options_for(path, 40), *tokenizer, nullptr); },
                          {"d.jsonl:1: completion", "d.jsonl:2: ", "d.jsonl:12: ", "and 2 more"});
}

TEST(LoadDataset, SeveralFilesOfSeveralFormatsFollowEachOther) {
  const TempFolder folder;
  const auto tokenizer = chat_tokenizer();
  const auto chat = make_chat_template("chatml", *tokenizer);
  DatasetOptions options;
  options.files = {
      {folder.write("a.json", R"([{"instruction": "i", "output": "one"}])"), "auto", {}},
      {folder.write("b.jsonl", "{\"q\": \"p\", \"a\": \"two\"}\n"),
       "completion",
       {{"prompt", "q"}, {"completion", "a"}}},
      {folder.write("c.txt", "three"), "auto", {}}};
  const Dataset dataset = load_dataset(options, *tokenizer, chat.get());
  ASSERT_EQ(dataset.samples.size(), 3u);
  const char* texts[] = {"one<|im_end|>", "two<|im_end|>", "e<|im_end|>"};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(dataset.samples[i].id, i);
    EXPECT_EQ(dataset.samples[i].record, static_cast<int64_t>(i));
    const std::string trained = trained_text(dataset.samples[i], *tokenizer);
    EXPECT_NE(trained.find(texts[i]), std::string::npos) << trained;
  }
}

TEST(SampleTask, SplitsAreDisjointAndShort) {
  const std::string folder = std::string(SHARDTUNE_SOURCE_DIR) + "/data/samples/";
  const auto train = read_records({folder + "train.jsonl", "auto", {}});
  const auto evaluation = read_records({folder + "eval.jsonl", "auto", {}});
  EXPECT_EQ(train.size(), 480u);
  EXPECT_EQ(evaluation.size(), 100u);
  for (const Record& a : evaluation) {
    for (const Record& b : train) {
      EXPECT_NE(a.messages[0].content, b.messages[0].content);
      EXPECT_NE(a.messages[1].content, b.messages[1].content);
    }
    EXPECT_TRUE(io::parse_json(a.messages[1].content, "answer").is_object());
  }
  if (testing::model_path().empty())
    GTEST_SKIP() << "no SmolLM2 file: set SHARDTUNE_MODEL";
  const auto tokenizer = load_tokenizer(testing::model_path());
  const auto chat = make_chat_template("auto", *tokenizer);
  const Dataset dataset =
      load_dataset(options_for(folder + "train.jsonl", 128), *tokenizer, chat.get());
  EXPECT_EQ(dataset.stats.num_truncated, 0);
  EXPECT_LT(dataset.stats.num_tokens, 40000);
}

}  // namespace
}  // namespace shardtune::data
