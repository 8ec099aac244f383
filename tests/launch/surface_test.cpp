// The command line: verbs, options, help, what goes to which stream.
#include <gtest/gtest.h>

#include <cmath>

#include "io/json.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::write_text;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// The code, a message on standard error that has all parts, and nothing on standard output.
void expect_refused(const Outcome& outcome, int code, const std::vector<std::string>& parts) {
  EXPECT_EQ(outcome.code, code) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_TRUE(has(outcome.err, "shardtune: error: ")) << outcome.err;
  for (const std::string& part : parts)
    EXPECT_TRUE(has(outcome.err, part)) << "expected '" << part << "' in: " << outcome.err;
}

TEST(CommandLine, NamesTheNearestVerbAndOption) {
  const ProgramFolder folder;
  expect_refused(folder.run("evall"), 64, {"unknown verb 'evall'", "did you mean 'eval'"});
  expect_refused(folder.run(""), 64, {"expected a verb"});
  expect_refused(folder.run("eval --modle model --data eval.jsonl"), 64,
                 {"unknown option '--modle'", "did you mean 'model'"});
  expect_refused(folder.run("eval --mod model --data eval.jsonl"), 64, {"unknown option '--mod'"});
  expect_refused(folder.run("eval --data eval.jsonl"), 64, {"expected --model"});
  expect_refused(folder.run("eval --model model"), 64, {"expected --data"});
  expect_refused(folder.run("eval --model model --model model --data eval.jsonl"), 64,
                 {"--model", "several times"});
  expect_refused(folder.run("train run.yaml other.yaml"), 64, {"an argument too many"});
  expect_refused(folder.run("train"), 64, {"expected CONFIG.yaml"});
  expect_refused(folder.run("eval --model"), 64, {"--model"});
}

TEST(CommandLine, ChecksNumbersAndChoices) {
  const ProgramFolder folder;
  const std::string eval = "eval --model model --data eval.jsonl ";
  for (const char* text : {"0", "-3", "ten", "1e3", "3.5", "99999999999999999999", "''"})
    expect_refused(folder.run(eval + "--max-samples=" + text), 64, {"--max-samples"});
  expect_refused(folder.run(eval + "--metric exact-match"), 64, {"did you mean 'exact_match'"});
  expect_refused(folder.run(eval + "--quantization nf5"), 64, {"did you mean 'nf4'"});
  expect_refused(folder.run(eval + "--threads 0"), 64, {"--threads"});
  expect_refused(folder.shell("OMP_NUM_THREADS=many $st " + eval), 64, {"OMP_NUM_THREADS"});
}

TEST(CommandLine, NamesTheStatusPageForWhatComesLater) {
  const ProgramFolder folder;
  expect_refused(folder.run("quantize"), 64, {"docs/status.md"});
  const std::string generate = "generate --model model --prompt x ";
  for (const char* option : {"--draft-model model", "--quantization gptq"})
    expect_refused(folder.run(generate + option), 64, {"docs/status.md"});
  EXPECT_FALSE(fs::exists(folder.path("o")));
}

TEST(CommandLine, HelpGoesToStandardOutput) {
  const ProgramFolder folder;
  EXPECT_TRUE(has(folder.run("--help").out, "tokenize"));
  for (const char* verb :
       {"train", "audit", "eval", "generate", "chat", "tokenize", "export", "inspect", "version"}) {
    const Outcome outcome = folder.run(std::string(verb) + " --help");
    EXPECT_EQ(outcome.code, 0);
    EXPECT_TRUE(has(outcome.out, std::string("usage: shardtune ") + verb)) << outcome.out;
  }
}

TEST(CommandLine, JsonIsOneDocument) {
  const ProgramFolder folder;
  for (const char* arguments :
       {"version --json", "inspect model --json",
        "eval --model model --data eval.jsonl "
        "--chat-template chatml --json",
        "tokenize --model model --file eval.jsonl --json",
        "generate --model model --prompt hi --raw --max-new-tokens 3 --json"}) {
    const Outcome outcome = folder.run(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_TRUE(io::parse_json(outcome.out, "stdout").is_object()) << arguments;
  }
}

TEST(Eval, ChoosesByLikelihood) {
  const ProgramFolder folder;
  write_text(folder.path("questions.jsonl"),
             "{\"query\": \"ab\", \"choices\": [\"c\", \"dd\"], \"gold\": 0}\n"
             "{\"query\": \"ab\", \"choices\": [\"c\", \"dd\"], \"gold\": \"dd\"}\n");
  const std::string eval = "eval --model model --data questions.jsonl --metric choice ";
  for (const char* chat : {"", "--chat-template chatml "}) {
    const Outcome outcome = folder.run(eval + chat + "--json");
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const io::Json json = io::parse_json(outcome.out, "stdout");
    EXPECT_EQ(json.find("num_samples")->as_integer(), 2);
    EXPECT_EQ(json.find("acc")->as_number(), 0.5) << "one of two opposite answers is right";
    EXPECT_EQ(json.find("acc_norm")->as_number(), 0.5);
    EXPECT_EQ(json.find("acc_stderr")->as_number(), 0.5);
  }
  expect_refused(folder.run(eval + "--batch-size 4"), 64, {"--batch-size", "choice"});
  expect_refused(folder.run(eval + "--format text"), 64, {"--format"});
  expect_refused(folder.run(eval + "--chat-template chatlm"), 64, {"chatml"});
  expect_refused(folder.run("eval --model model --data eval.jsonl --metric choice"), 65,
                 {"eval.jsonl:1", "choices"});
  expect_refused(folder.run("eval --model model --data none.jsonl --metric choice"), 66,
                 {"none.jsonl"});
}

/// Samples of training, of data.eval and of eval_split are three sets; the verb measures as a run
/// does.
TEST(Eval, GivesTheLossThatARunGaveOfItsEvaluationSet) {
  const ProgramFolder folder;
  const auto loss_of = [&](const std::string& arguments, const char* key) {
    const Outcome outcome = folder.run(arguments + " --json");
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return io::parse_json(outcome.out, "stdout").find(key)->as_number();
  };
  const double of_run = loss_of("train run.yaml --set data.eval=eval.jsonl", "eval_loss");
  const std::string eval =
      "eval --model model --adapter run/adapter --compute-dtype float32 --data ";
  EXPECT_NEAR(loss_of(eval + "eval.jsonl", "loss"), of_run, 1e-6 * of_run);
  EXPECT_GT(std::abs(loss_of(eval + "train.jsonl", "loss") - of_run), 1e-4 * of_run);
  const double of_split = loss_of(
      "train run.yaml --set data.eval_split=6 --set checkpoint.output_dir=split", "eval_loss");
  EXPECT_GT(std::abs(of_split - of_run), 1e-4 * of_run);
}

TEST(CommandLine, LeavesItsCodeInTheStatusFile) {
  const ProgramFolder folder;
  folder.shell("SHARDTUNE_STATUS_FILE=status $st version");
  EXPECT_FALSE(fs::exists(folder.path("status"))) << "only launch/run makes it";
  testing::write_text(folder.path("status"), "");
  folder.shell("SHARDTUNE_STATUS_FILE=status $st version");
  folder.shell("SHARDTUNE_STATUS_FILE=status $st eval --model none --data eval.jsonl");
  EXPECT_EQ(testing::read_text(folder.path("status")), "0 0\n0 66\n");
}

TEST(CommandLine, TellsAFullOutput) {
  const ProgramFolder folder;
  const Outcome outcome = folder.shell("$st tokenize --model model --file train.jsonl >/dev/full");
  EXPECT_EQ(outcome.code, 73);
  EXPECT_TRUE(has(outcome.err, "standard output")) << outcome.err;
}

TEST(Tokenize, GivesOneArrayPerLine) {
  const ProgramFolder folder;
  write_text(folder.path("lines.txt"), "ab\n\nc<|im_end|>\r\nlast");
  const Outcome outcome = folder.run("tokenize --model model --file lines.txt");
  EXPECT_EQ(outcome.out, "[97, 98]\n[]\n[99, 258, 13]\n[108, 97, 115, 116]\n");
  EXPECT_EQ(folder.shell("cat lines.txt | $st tokenize --model model").out, outcome.out);
  EXPECT_EQ(folder.run("tokenize --model model --text \"$(printf 'a\\nb')\"").out,
            "[97, 10, 98]\n");
  EXPECT_EQ(folder
                .shell("$st tokenize --model model --file lines.txt | $st tokenize --model model "
                       "--decode")
                .out,
            "ab\n\nc<|im_end|>\r\nlast\n");
  EXPECT_EQ(folder.run("tokenize --model model --text ''").out, "[]\n");
}

TEST(Tokenize, StreamsBlocksInOrder) {
  const ProgramFolder folder;
  std::string text;
  std::string expected;
  for (int i = 0; text.size() < (9u << 20); ++i) {
    const std::string line(static_cast<size_t>(i % 200), static_cast<char>('a' + i % 26));
    text += line + "\n";
    expected += "[";
    for (size_t k = 0; k < line.size(); ++k)
      expected += (k > 0 ? ", " : "") + std::to_string(static_cast<int>(line[k]));
    expected += "]\n";
  }
  write_text(folder.path("big.txt"), text);
  const Outcome outcome = folder.run("tokenize --model model --file big.txt --threads 2");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_TRUE(outcome.out == expected);
}

TEST(Tokenize, RefusesWhatIsNoIdList) {
  const ProgramFolder folder;
  write_text(folder.path("ids.txt"), "[97]\n[98, -1]\n");
  const Outcome outcome = folder.run("tokenize --model model --decode --file ids.txt");
  EXPECT_EQ(outcome.code, 65);
  EXPECT_TRUE(has(outcome.err, "ids.txt:2")) << outcome.err;
  EXPECT_EQ(folder.run("tokenize --model model --decode --text '[100000]'").code, 65);
  EXPECT_EQ(folder.run("tokenize --model model --file none.txt").code, 66);
  EXPECT_EQ(folder.run("tokenize --model model --file model").code, 66);
}

TEST(Tokenize, RendersAConversation) {
  const ProgramFolder folder;
  write_text(folder.path("chat.json"), R"([{"role": "user", "content": "hi"}])");
  const Outcome outcome =
      folder.run("tokenize --model model --chat chat.json --chat-template chatml");
  // <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
  EXPECT_EQ(outcome.out.substr(0, 37), "[257, 117, 115, 101, 114, 10, 104, 10") << outcome.err;
  EXPECT_TRUE(has(outcome.out, "105, 258, 10, 257, 97, 115")) << outcome.out;
  write_text(folder.path("bad.json"), R"([{"role": "user"}])");
  const Outcome bad = folder.run("tokenize --model model --chat bad.json --chat-template chatml");
  EXPECT_EQ(bad.code, 65);
  EXPECT_TRUE(has(bad.err, "messages[0]: content")) << bad.err;
}

}  // namespace
}  // namespace shardtune::launch
