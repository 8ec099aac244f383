// Wrong input: each its own message and exit code, and nothing half-written.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;
using testing::write_text;

void expect_error(const Outcome& outcome, int code, const std::vector<std::string>& parts) {
  EXPECT_EQ(outcome.code, code) << outcome.err;
  for (const std::string& part : parts)
    EXPECT_NE(outcome.err.find(part), std::string::npos) << "'" << part << "' in: " << outcome.err;
}

/// No adapter, no checkpoint, no partial folder.
void expect_nothing_written(const ProgramFolder& folder) {
  for (const auto& entry : fs::recursive_directory_iterator(folder.path("."))) {
    const std::string name = entry.path().filename().string();
    EXPECT_FALSE(name == "adapter" || name.find("partial") != std::string::npos ||
                 name.starts_with("checkpoint-") || name == "merged")
        << entry.path();
  }
}

void replace(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = read_text(path);
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  write_text(path, text.replace(at, from.size(), to));
}

TEST(WrongInput, MissingModel) {
  const ProgramFolder folder;
  fs::rename(folder.path("model"), folder.path("elsewhere"));
  expect_error(folder.run("train run.yaml"), 66, {"model"});
  for (const char* verb : {"eval --data eval.jsonl", "generate --prompt x", "tokenize --text x",
                           "export --to hf --out merged"})
    expect_error(folder.run(std::string(verb) + " --model model"), 66, {"model"});
  expect_error(folder.run("inspect model"), 66, {"no such file or folder"});
  expect_error(folder.run("eval --model elsewhere --data none.jsonl --chat-template chatml"), 66,
               {"none.jsonl"});
  expect_error(folder.run("eval --model elsewhere --data eval.jsonl --chat-template chatml "
                          "--adapter none"),
               66, {"none"});
  expect_error(folder.run("train none.yaml"), 66, {"none.yaml"});
  expect_nothing_written(folder);
}

TEST(WrongInput, ReportOfWhatIsNoRun) {
  const ProgramFolder folder;
  expect_error(folder.run("report nothing --out page.html"), 66, {"nothing"});
  expect_error(folder.run("report model --out page.html"), 66, {"metrics.jsonl"});
  expect_error(folder.run("report model"), 64, {"expected --out"});
  write_text(folder.path("model") / "metrics.jsonl", "loss,accuracy\n1.0,0.5\n");
  expect_error(folder.run("report model --out page.html"), 65, {"metrics.jsonl", "2 other lines"});
  write_text(folder.path("model") / "metrics.jsonl", "");
  expect_error(folder.run("report model --out none/page.html"), 73, {"none"});
  EXPECT_EQ(folder.run("report model --out page.html").code, 0);
  EXPECT_TRUE(fs::exists(folder.path("page.html")));
}

TEST(WrongInput, TruncatedSafetensors) {
  const ProgramFolder folder;
  const fs::path file = folder.path("model") / "model.safetensors";
  for (const uintmax_t size : {fs::file_size(file) - 1, uintmax_t{5}, uintmax_t{0}}) {
    fs::resize_file(file, size);
    for (const char* verb : {"train run.yaml",
                             "eval --model model --data eval.jsonl "
                             "--chat-template chatml",
                             "export --model model --to hf --out merged", "inspect model"})
      expect_error(folder.run(verb), 65, {"model.safetensors"});
  }
  expect_nothing_written(folder);
}

TEST(WrongInput, TruncatedGguf) {
  const char* given = std::getenv("SHARDTUNE_MODEL");
  const char* home = std::getenv("HOME");
  const fs::path model = given != nullptr ? fs::path(given)
                                          : fs::path(home != nullptr ? home : "") /
                                                ".cache/shardtune/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!fs::exists(model))
    GTEST_SKIP() << "SmolLM2 is not there: set SHARDTUNE_MODEL or run launch/quickstart.sh";
  const ProgramFolder folder;
  const std::string bytes = read_text(model);
  for (const size_t size : {bytes.size() - 1, size_t{1'000'000}, size_t{20}}) {
    write_text(folder.path("cut.gguf"), bytes.substr(0, size));
    for (const char* verb : {"eval --data eval.jsonl", "tokenize --text x"}) {
      const Outcome outcome = folder.run(std::string(verb) + " --model cut.gguf");
      expect_error(outcome, 65, {"cut.gguf"});
    }
  }
}

TEST(WrongInput, WrongTensorShape) {
  const ProgramFolder folder;
  replace(folder.path("model") / "config.json", "\"intermediate_size\": 288",
          "\"intermediate_size\": 320");
  for (const char* verb : {"train run.yaml",
                           "eval --model model --data eval.jsonl "
                           "--chat-template chatml",
                           "export --model model --to hf --out merged"})
    expect_error(folder.run(verb), 65, {"model.layers.0.mlp", "320", "288"});
  expect_nothing_written(folder);
}

TEST(WrongInput, ConfigurationTellsEverythingAtOnce) {
  const ProgramFolder folder;
  replace(folder.path("run.yaml"), "lora_alpha: 8", "lora_alhpa: 8");
  replace(folder.path("run.yaml"), "max_steps: 3", "max_steps: many");
  const Outcome outcome = folder.run("train run.yaml");
  expect_error(
      outcome, 64,
      {"run.yaml:3", "lora_alhpa", "did you mean 'lora_alpha'", "run.yaml:8", "max_steps", "many"});
  expect_error(folder.run("train run.yaml --set training.max_stepz=3"), 64, {"max_stepz"});
  expect_nothing_written(folder);
  EXPECT_FALSE(fs::exists(folder.path("run")));
}

TEST(WrongInput, BadLineInTheData) {
  const ProgramFolder folder;
  for (const char* name : {"train.jsonl", "eval.jsonl"}) {
    std::string text = read_text(folder.path(name));
    text.insert(text.find('\n') + 1, "{\"prompt\": \"x\", \"completion\": }\n");
    write_text(folder.path(name), text);
  }
  expect_error(folder.run("train run.yaml"), 65, {"train.jsonl:2"});
  expect_error(folder.run("eval --model model --data eval.jsonl --chat-template chatml"), 65,
               {"eval.jsonl:2"});
  write_text(folder.path("eval.jsonl"), "{\"prompt\": \"x\"}\n");
  expect_error(folder.run("eval --model model --data eval.jsonl --format completion "
                          "--chat-template chatml"),
               65, {"eval.jsonl:1", "completion"});
  expect_nothing_written(folder);
}

TEST(WrongInput, UnknownChatTemplate) {
  const ProgramFolder folder;
  replace(folder.path("model") / "tokenizer_config.json", "{",
          "{\"chat_template\": \"{{ messages }} of nobody\", ");
  replace(folder.path("run.yaml"), "chat_template: chatml", "chat_template: auto");
  expect_error(folder.run("train run.yaml"), 64, {"chat_template"});
  expect_error(folder.run("generate --model model --prompt x"), 64, {"chatml"});
  expect_error(folder.run("generate --model model --prompt x --chat-template chatlm"), 64,
               {"chatml"});
  EXPECT_EQ(folder.run("generate --model model --prompt x --raw --max-new-tokens 2").code, 0);
  expect_nothing_written(folder);
}

TEST(WrongInput, OutputThatCannotBeWritten) {
  const ProgramFolder folder;
  write_text(folder.path("file"), "x");
  expect_error(folder.run("train run.yaml --set checkpoint.output_dir=file/run"), 73, {"file"});
  expect_error(folder.run("export --model model --to hf --out file/merged"), 73, {"file"});
  expect_error(folder.run("export --model model --to hf --out file"), 64, {"file"});
  expect_error(folder.run("export --model model --to gguf-lora --out o"), 64, {"--adapter"});
  expect_error(folder.run("export --model model --to gguf --dtype q4_0 --out o"), 64, {"q8_0"});
  expect_error(folder.run("export --model model --to gguf --max-shard-size 5GB --out o"), 64,
               {"--max-shard-size"});
  expect_error(folder.run("export --model model --to hf --out model"), 64, {"model"});
  if (geteuid() != 0) {
    fs::create_directory(folder.path("closed"));
    fs::permissions(folder.path("closed"), fs::perms::owner_read | fs::perms::owner_exec);
    expect_error(folder.run("train run.yaml --set checkpoint.output_dir=closed/run"), 73,
                 {"closed"});
    expect_error(folder.run("export --model model --to hf --out closed/merged"), 73, {"closed"});
  }
  expect_nothing_written(folder);
}

TEST(WrongInput, FullDisk) {
  const ProgramFolder folder;
  fs::create_directory(folder.path("small"));
  if (folder.shell("mount -t tmpfs -o size=256k none small").code != 0)
    GTEST_SKIP() << "needs the right to mount a tmpfs";
  const Outcome merged = folder.run("export --model model --to hf --out small/merged");
  const Outcome trained = folder.run(
      "train run.yaml --set checkpoint.output_dir=small/run "
      "--set adapter.lora_rank=32 --set adapter.lora_alpha=32");
  EXPECT_FALSE(fs::exists(folder.path("small/merged")));
  EXPECT_FALSE(fs::exists(folder.path("small/run/adapter")));
  EXPECT_EQ(folder.shell("find small -name '*partial*'").out, "");
  EXPECT_EQ(folder.shell("umount small").code, 0);
  expect_error(merged, 73, {"free"});
  expect_error(trained, 73, {"small"});
}

TEST(WrongInput, AdapterOfAnotherBase) {
  const ProgramFolder folder;
  ASSERT_EQ(folder.run("train run.yaml").code, 0);
  fs::copy(folder.path("model"), folder.path("other"));
  std::string weights = read_text(folder.path("other/model.safetensors"));
  weights.back() = static_cast<char>(weights.back() ^ 1);
  write_text(folder.path("other/model.safetensors"), weights);
  expect_error(folder.run("eval --model other --adapter run/adapter --data eval.jsonl"), 65,
               {"run/adapter", "'model'", "'other'"});
}

}  // namespace
}  // namespace shardtune::launch
