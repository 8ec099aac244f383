// generate and chat as a user runs them: sampling, batches, streams, conversations, wrong input.
#include <gtest/gtest.h>

#include "io/json.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::write_text;

constexpr const char* kChat =
    "chat --model model --chat-template chatml --compute-dtype float32 --max-new-tokens 12 ";

struct WrongInput {
  std::string arguments;
  int code;
  std::vector<std::string> parts;
};

void expect_refused(const ProgramFolder& folder, const std::string& verb,
                    const std::vector<WrongInput>& inputs) {
  for (const WrongInput& input : inputs) {
    const Outcome outcome = folder.run(verb + input.arguments);
    EXPECT_EQ(outcome.code, input.code) << input.arguments << ": " << outcome.err;
    EXPECT_EQ(outcome.out, "") << input.arguments;
    for (const std::string& part : input.parts)
      EXPECT_NE(outcome.err.find(part), std::string::npos)
          << "expected '" << part << "' for " << input.arguments << " in: " << outcome.err;
  }
}

std::vector<std::string> texts_of(const std::string& lines) {
  std::vector<std::string> texts;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin);
    const io::Json json = io::parse_json(lines.substr(begin, end - begin), "stdout");
    texts.push_back(json.find("text")->as_string());
    begin = end + 1;
  }
  return texts;
}

TEST(GenerateVerb, SampledTextIsThatOfItsSeed) {
  const ProgramFolder folder;
  const std::string sampled =
      "generate --model model --raw --prompt abc --max-new-tokens 20 --temperature 1 ";
  const std::string text = folder.run(sampled + "--threads 1").out;
  EXPECT_EQ(folder.run(sampled + "--threads 2").out, text);
  EXPECT_EQ(folder.run(sampled + "--seed 0 --top-p 1").out, text);
  EXPECT_NE(folder.run(sampled + "--seed 1").out, text);
  EXPECT_NE(folder.run(sampled + "--top-k 3").out, text);
  const std::string greedy = folder.run(sampled + "--temperature=0").out;
  EXPECT_EQ(greedy, "") << "--temperature was given twice";
  EXPECT_EQ(folder.run(sampled + "--top-k 1").out,
            folder.run("generate --model model --raw --prompt abc --max-new-tokens 20").out);
}

TEST(GenerateVerb, PromptsOfAFileGetTheTextsThatTheyGetAlone) {
  const ProgramFolder folder;
  std::string lines;
  for (int i = 0; i < 9; ++i)
    lines += "{\"prompt\": \"" + std::string(static_cast<size_t>(1 + i * i), 'b') + "\"}\n";
  write_text(folder.path("prompts.jsonl"), lines);
  for (const std::string sampling : {"", "--temperature 0.9 --top-p 0.9 --seed 4 "}) {
    const std::string options =
        "generate --model model --chat-template chatml --max-new-tokens 9 " + sampling;
    const auto together = texts_of(folder.run(options + "--prompts prompts.jsonl").out);
    ASSERT_EQ(together.size(), 9u);
    EXPECT_EQ(texts_of(folder.run(options + "--prompts prompts.jsonl --batch-size 1").out),
              together);
    for (const int i : {0, 3, 8}) {
      const std::string prompt(static_cast<size_t>(1 + i * i), 'b');
      EXPECT_EQ(folder.run(options + "--prompt " + prompt).out,
                together[static_cast<size_t>(i)] + "\n")
          << "streamed, alone";
    }
  }
}

TEST(GenerateVerb, RefusesWrongInput) {
  const ProgramFolder folder;
  write_text(folder.path("empty.jsonl"), "\n");
  write_text(folder.path("cut.jsonl"), "{\"prompt\": \"a\"}\n{\"prompt\": \n");
  write_text(folder.path("number.jsonl"), "{\"prompt\": 7}\n");
  write_text(folder.path("roles.jsonl"), R"({"messages": [{"role": "user"}]})");
  expect_refused(
      folder, "generate --model model --chat-template chatml ",
      {{"", 64, {"--prompt", "neither"}},
       {"--prompt a --prompts empty.jsonl", 64, {"both"}},
       {"--prompts none.jsonl", 66, {"none.jsonl"}},
       {"--prompts empty.jsonl", 65, {"empty.jsonl", "found none"}},
       {"--prompts cut.jsonl", 65, {"cut.jsonl:2"}},
       {"--prompts number.jsonl", 65, {"number.jsonl:1", "prompt", "number"}},
       {"--prompts roles.jsonl", 65, {"roles.jsonl:1", "messages[0]", "content"}},
       {"--prompt a --temperature hot", 64, {"--temperature", "'hot'", "0 to 100"}},
       {"--prompt a --temperature=-1", 64, {"--temperature"}},
       {"--prompt a --temperature nan", 64, {"--temperature"}},
       {"--prompt a --temperature 1 --top-p 1.5", 64, {"--top-p"}},
       {"--prompt a --temperature 1 --top-k 0", 64, {"--top-k"}},
       {"--prompt a --top-p 0.9", 64, {"--top-p", "--temperature"}},
       {"--prompt a --seed 3", 64, {"--seed", "greedy"}},
       {"--prompt a --max-new-tokens 0", 64, {"--max-new-tokens"}},
       {"--prompt a --batch-size 5000", 64, {"--batch-size"}},
       {"--prompt \"$(head -c 3000 /dev/zero | tr '\\0' a)\"", 65, {"prompt 1", "context"}}});
}

TEST(ChatVerb, AnswersEveryLineAsGenerateWould) {
  const ProgramFolder folder;
  ASSERT_EQ(folder.run("train run.yaml").code, 0);
  for (const std::string adapter : {"", "--adapter run/adapter "}) {
    const std::string generate =
        "generate --model model --chat-template chatml --compute-dtype float32 "
        "--max-new-tokens 12 " +
        adapter;
    const auto reply_to = [&](const io::Json& turns) {
      io::Json line = io::Json::object();
      line.set("messages", turns);
      write_text(folder.path("turns.jsonl"), line.dump());
      return texts_of(folder.run(generate + "--prompts turns.jsonl").out).at(0);
    };
    const auto add = [](io::Json& turns, const char* role, const std::string& content) {
      io::Json turn = io::Json::object();
      turn.set("role", role);
      turn.set("content", content);
      turns.push_back(std::move(turn));
    };
    io::Json turns = io::Json::array();
    add(turns, "system", "Be brief.");
    add(turns, "user", "hi there");
    const std::string first = reply_to(turns);
    add(turns, "assistant", first);
    add(turns, "user", "and now?");
    const std::string second = reply_to(turns);
    const Outcome outcome =
        folder.shell("printf 'hi there\\n\\nand now?\\n/reset\\nhi there' | $st " +
                     (kChat + adapter) + "--system 'Be brief.'");
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, first + "\n" + second + "\n" + first + "\n");
  }
}

TEST(ChatVerb, LeavesAtQuitAndAtTheEndOfTheInput) {
  const ProgramFolder folder;
  const Outcome quit = folder.shell(std::string("printf 'a\\n/quit\\nb\\n' | $st ") + kChat);
  EXPECT_EQ(quit.code, 0) << quit.err;
  EXPECT_EQ(quit.out, folder.shell(std::string("echo a | $st ") + kChat).out);
  const Outcome nothing = folder.run(kChat);
  EXPECT_EQ(nothing.code, 0) << nothing.err;
  EXPECT_EQ(nothing.out, "");
  const Outcome unknown = folder.shell(std::string("echo /resett | $st ") + kChat);
  EXPECT_EQ(unknown.code, 0);
  EXPECT_EQ(unknown.out, "");
  EXPECT_NE(unknown.err.find("unknown command '/resett'"), std::string::npos) << unknown.err;
}

TEST(ChatVerb, TellsItsCommandsInATerminal) {
  const ProgramFolder folder;
  if (folder.shell("script -qec true /dev/null").code != 0)
    GTEST_SKIP() << "needs util-linux' script";
  const Outcome outcome =
      folder.shell("(sleep 1; printf 'hello\\n/reset\\n/quit\\n'; sleep 5) | script -qec \"$st " +
                   std::string(kChat) + "\" /dev/null");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"/reset forgets", "> ", "The conversation is forgotten."})
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << " in: " << outcome.out;
}

TEST(ChatVerb, RefusesWrongInput) {
  const ProgramFolder folder;
  expect_refused(folder, "chat ",
                 {{"", 64, {"--model"}},
                  {"--model none --chat-template chatml", 66, {"none"}},
                  {"--model model", 64, {"a model without template"}},
                  {"--model model --chat-template none", 64, {"generate --raw"}},
                  {"--model model --chat-template chatlm", 64, {"chatml"}},
                  {"--model model --chat-template chatml --adapter none", 66, {"none"}},
                  {"--model model --chat-template chatml --adapter ''", 64, {"--adapter"}},
                  {"--model model --chat-template chatml --top-k 4", 64, {"--temperature"}},
                  {"--model model --chat-template chatml --temperature 1e9", 64, {"0 to 100"}},
                  {"--model model --chat-template chatml --max-new-tokens x", 64, {"'x'"}},
                  {"--model model --chat-template chatml --threads 0", 64, {"--threads"}},
                  {"--model model --chat-template chatml --prompt hi", 64, {"--prompt"}}});
  const Outcome longer =
      folder.shell(std::string("(echo hi; head -c 3000 /dev/zero | tr '\\0' a) | $st ") + kChat);
  EXPECT_EQ(longer.code, 65);
  EXPECT_NE(longer.err.find("the model's context"), std::string::npos) << longer.err;
  const Outcome endless =
      folder.shell(std::string("head -c 1100000 /dev/zero | tr '\\0' a | $st ") + kChat);
  EXPECT_EQ(endless.code, 65);
  EXPECT_NE(endless.err.find("1 MiB"), std::string::npos) << endless.err;
}

}  // namespace
}  // namespace shardtune::launch
