// audit: what it shows and counts, for people and as JSON, and what train then refuses.
#include <gtest/gtest.h>

#include "io/json.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

using testing::Outcome;
using testing::ProgramFolder;
using testing::write_text;

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Audit, ShowsLabelsAndSums) {
  const ProgramFolder folder;
  write_text(folder.path("train.jsonl"),
             "{\"prompt\": \"say\\u001b[31m\", \"completion\": \"red\\nblue\"}\n"
             "{\"prompt\": \"b\", \"completion\": \"c\"}\n");
  const Outcome outcome = folder.run("audit run.yaml --samples 1");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(has(outcome.out, "sample 0, train.jsonl:1: ")) << outcome.out;
  EXPECT_FALSE(has(outcome.out, "sample 1"));
  EXPECT_FALSE(has(outcome.out, "\x1b")) << "no terminal: no colours, nor those of the data";
  EXPECT_TRUE(has(outcome.out, "say\\x1b[31m<|im_end|>")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "[[red\u21b5\nblue<|im_end|>]]\u21b5\n")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "trained answers: 2, 2 of them (100.0%) with their end token"));
  EXPECT_TRUE(has(outcome.out, "truncated: 0 of 2 samples"));
  EXPECT_TRUE(has(outcome.out, "packing: 1 rows of 96 tokens in the first epoch, ")) << outcome.out;
  EXPECT_FALSE(testing::fs::exists(folder.path("run")));
}

TEST(Audit, PrintsOneDocument) {
  const ProgramFolder folder;
  const Outcome outcome = folder.run("audit run.yaml --json --samples 2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const io::Json json = io::parse_json(outcome.out, "audit");
  EXPECT_EQ(json.find("num_samples")->as_integer(), 24);
  EXPECT_EQ(json.find("num_answers")->as_integer(), 24);
  EXPECT_EQ(json.find("num_answers_with_end")->as_integer(), 24);
  const io::Json& roles = *json.find("roles");
  EXPECT_EQ(roles.find("assistant")->find("num_trained_tokens")->as_integer(),
            json.find("num_trained_tokens")->as_integer());
  EXPECT_EQ(roles.find("user")->find("num_trained_tokens")->as_integer(), 0);
  const double fill = json.find("row_fill")->as_number();
  EXPECT_NEAR(fill,
              static_cast<double>(json.find("num_tokens")->as_integer()) /
                  static_cast<double>(96 * json.find("num_rows")->as_integer()),
              1e-12);
  ASSERT_EQ(json.find("samples")->as_array().size(), 2u);
  const auto& tokens = json.find("samples")->as_array()[0].find("tokens")->as_array();
  EXPECT_EQ(tokens.at(0).find("text")->as_string(), "<|im_start|>");
  EXPECT_EQ(tokens.at(0).find("role")->as_string(), "template");
}

TEST(Audit, ColoursATerminal) {
  const ProgramFolder folder;
  if (folder.shell("script --version").code != 0)
    GTEST_SKIP() << "no program 'script' to make a terminal with";
  const Outcome outcome = folder.shell("script -qec \"$st audit run.yaml --samples 1\" /dev/null");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_TRUE(has(outcome.out, "\x1b[32m")) << outcome.out;
  EXPECT_TRUE(has(outcome.out, "\x1b[1;7;32m<|im_end|>\x1b[0m")) << outcome.out;
  const Outcome plain =
      folder.shell("script -qec \"NO_COLOR=1 $st audit run.yaml --samples 1\" /dev/null");
  EXPECT_FALSE(has(plain.out, "\x1b[")) << plain.out;
}

TEST(Audit, DataWithoutATrainedEndIsShownAndRefusedAsByTrain) {
  const ProgramFolder folder;
  write_text(folder.path("train.jsonl"),
             "{\"prompt\": \"p\", \"completion\": \"" + std::string(400, 'z') + "\"}\n");
  const Outcome audit = folder.run("audit run.yaml");
  EXPECT_EQ(audit.code, 65);
  EXPECT_TRUE(has(audit.out, "1 of them lost the end of the answer")) << audit.out;
  EXPECT_TRUE(has(audit.out, "trained answers: 1, 0 of them (0.0%)")) << audit.out;
  const Outcome train = folder.run("train run.yaml");
  EXPECT_EQ(train.code, 65);
  for (const Outcome* outcome : {&audit, &train}) {
    EXPECT_TRUE(has(outcome->err, "trained end token (<|im_end|>), found none in 1"))
        << outcome->err;
    EXPECT_TRUE(has(outcome->err, "data.max_length 96")) << outcome->err;
  }
  EXPECT_FALSE(testing::fs::exists(folder.path("run")));
}

TEST(Audit, TextsOfAPretrainingMayAllBeCut) {
  const ProgramFolder folder;
  write_text(folder.path("train.jsonl"), "{\"text\": \"" + std::string(400, 'z') + "\"}\n");
  const Outcome outcome = folder.run(
      "train run.yaml --set 'data.train=[{path: train.jsonl, format: text}]'"
      " --set data.packing=false --set training.objective=pretrain --set training.max_steps=1");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
}

}  // namespace
}  // namespace shardtune::launch
