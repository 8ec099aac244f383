// A folder of damaged and misplaced inputs, and rows that say what the program tells of each.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <initializer_list>
#include <limits>
#include <set>

#include "tests/launch/program.h"

namespace shardtune::testing {

/// One wrong input: the arguments after the verb, the exit code, and what the message must hold:
/// where, what is expected, what was found, what to do.
struct WrongInput {
  const char* arguments;
  int code;
  std::initializer_list<const char*> parts;
};

/// Made once for all rows: no row may change it.
class WrongInputFolder : public ProgramFolder {
 public:
  WrongInputFolder() {
    write_files();
    write_data();
    damage_models();
    EXPECT_EQ(run("train run.yaml").code, 0);
    EXPECT_EQ(run("train gpt2.yaml").code, 0);
    damage_adapters();
    damage_runs();
  }

  /// Names and sizes of everything in the folder; the log of a run may grow.
  std::set<std::string> listing() const {
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(path(".")))
      names.insert(entry.path().string() +
                   (entry.is_regular_file() && entry.path().filename() != "train.log"
                        ? " " + std::to_string(entry.file_size())
                        : ""));
    return names;
  }

 private:
  void write_files() const {
    write_text(path("empty"), "");
    write_text(path("empty.yaml"), "");
    write_text(path("latin.yaml"), "model: {model_name_or_path: caf\xe9}\n");
    write_text(path("two_errors.yaml"), replaced(config(), {{"lora_rank: 4", "lora_rnk: 4"},
                                                            {"max_steps: 3", "max_steps: -3"}}));
    write_text(path("tab.yaml"), "model:\n\tmodel_name_or_path: model\n");
    write_text(path("gpt2.yaml"), replaced(config(), {{"_path: model", "_path: gpt2"},
                                                      {"_dir: run", "_dir: gpt2_run"}}));
    write_text(path("magic.gguf"), "PK\x03\x04 and so on");
    write_text(path("version.gguf"), std::string("GGUF\x09\0\0\0", 8) + std::string(16, '\0'));
    write_text(path("count.gguf"), std::string("GGUF\x03\0\0\0", 8) + std::string(16, '\x7f'));
    write_text(path("empty.gguf"), "");
    write_text(path("pickle.bin"), "\x80\x02}q");
    fs::create_directories(path("full"));
    write_text(path("full/mine.txt"), "mine");
    fs::create_directories(path("bare"));
  }

  void write_data() const {
    const std::string good = R"({"prompt": "a", "completion": "b"})";
    write_text(path("latin.jsonl"), "{\"prompt\": \"caf\xe9\", \"completion\": \"b\"}\n");
    write_text(path("keys.jsonl"), R"({"question": "a", "answer": "b"})");
    write_text(path("type.jsonl"), good + "\n{\"prompt\": 3, \"completion\": \"b\"}\n");
    write_text(path("cut.jsonl"), good + "\n{\"prompt\": \"a\", \"compl");
    write_text(path("role.jsonl"), R"({"messages": [{"role": "robot", "content": "a"}]})");
    write_text(path("question.jsonl"), R"({"messages": [{"role": "user", "content": "a"}]})");
    write_text(path("no_answer.jsonl"), R"({"prompt": "a", "completion": ""})");
    write_text(path("table.csv"), "prompt,completion\na,b\n");
    write_text(path("ids.json"), "[97, -1]");
    write_text(path("nul.json"), std::string("[\0]", 3));
    write_text(path("prompts.jsonl"), "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n");
    write_text(path("choices.jsonl"), R"({"query": "a", "choices": ["b", "c"], "gold": 2})");
  }

  void damage_models() const {
    make_tiny_model(path("gpt2"), {.model_type = "gpt2"});
    const auto damaged = [this](const std::string& name) {
      fs::copy(path("model"), path(name), fs::copy_options::recursive);
      return path(name);
    };
    const auto with_config = [&](const std::string& name, const std::string& from,
                                 const std::string& to) {
      const fs::path file = damaged(name) / "config.json";
      write_text(file, replaced(read_text(file), {{from, to}}));
    };
    with_config("family", "\"llama\"", "\"falcon\"");
    with_config("layers", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": -2");
    with_config("many_layers", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    with_config("heads", "\"num_attention_heads\": 4", "\"num_attention_heads\": 5");
    with_config("width", "\"hidden_size\": 64", "\"hidden_size\": \"64\"");
    with_config("vocabulary", "\"vocab_size\": 260", "\"vocab_size\": 300");
    write_text(damaged("cut_config") / "config.json", "{\"model_type\": \"llama\",");
    fs::remove(damaged("no_tokenizer") / "tokenizer.json");
    const fs::path tokenizer = damaged("cut_tokenizer") / "tokenizer.json";
    write_text(tokenizer, read_text(tokenizer).substr(0, 700));
    write_text(damaged("wordpiece") / "tokenizer.json",
               R"({"model": {"type": "WordPiece", "vocab": {}}})");
    const fs::path cut = damaged("cut") / "model.safetensors";
    fs::resize_file(cut, fs::file_size(cut) - 100);
    write_text(damaged("no_weights") / "model.safetensors", "");
    fs::rename(damaged("pickle") / "model.safetensors", path("pickle/pytorch_model.bin"));
    const fs::path length = damaged("header_length") / "model.safetensors";
    write_text(length, "\xff\xff\xff\xff" + read_text(length).substr(4));
    const fs::path kind = damaged("integers") / "model.safetensors";
    write_text(kind, replaced(read_text(kind), {{"\"F32\"", "\"I32\""}}));
    const fs::path unknown = damaged("dtype") / "model.safetensors";
    write_text(unknown, replaced(read_text(unknown), {{"\"F32\"", "\"F99\""}}));
    put_nan(damaged("nan") / "model.safetensors");
    const fs::path other = damaged("other") / "model.safetensors";
    std::string weights = read_text(other);
    weights.back() = static_cast<char>(weights.back() ^ 1);
    write_text(other, weights);
  }

  void damage_adapters() const {
    const auto damaged = [this](const std::string& name) {
      fs::copy(path("run/adapter"), path(name), fs::copy_options::recursive);
      return path(name);
    };
    const fs::path cut = damaged("cut_adapter") / "adapter_model.safetensors";
    fs::resize_file(cut, fs::file_size(cut) - 9);
    fs::remove(damaged("no_values") / "adapter_model.safetensors");
    put_nan(damaged("nan_adapter") / "adapter_model.safetensors");
    const fs::path rank = damaged("rank_adapter") / "adapter_config.json";
    write_text(rank, replaced(read_text(rank), {{"\"r\": 4", "\"r\": 8"}}));
    const fs::path method = damaged("method_adapter") / "adapter_config.json";
    write_text(method, replaced(read_text(method), {{"\"LORA\"", "\"XLORA\""}}));
    write_text(damaged("list_adapter") / "adapter_config.json", "[1, 2]");
  }

  void damage_runs() const {
    const auto damaged = [this](const std::string& name) {
      fs::copy(path("run"), path(name), fs::copy_options::recursive);
      return path(name);
    };
    write_text(damaged("other_records") / "metrics.jsonl", "loss,accuracy\n1.0,0.5\n");
    write_text(damaged("latin_records") / "metrics.jsonl", "\xff\xfe\n");
    fs::remove(damaged("no_records") / "metrics.jsonl");
    for (const char* file : {"state.json", "adapter.safetensors"}) {
      const fs::path copy = damaged(std::string("flipped_") + file);
      const fs::path target = copy / "checkpoint-3" / file;
      std::string bytes = read_text(target);
      bytes.back() = static_cast<char>(bytes.back() ^ 1);
      write_text(target, bytes);
    }
    fs::remove(damaged("incomplete") / "checkpoint-3" / "optimizer.safetensors");
  }

  using Changes = std::vector<std::pair<std::string, std::string>>;
  static std::string replaced(std::string text, const Changes& changes) {
    for (const auto& [from, to] : changes) {
      const size_t at = text.find(from);
      EXPECT_NE(at, std::string::npos) << from;
      text.replace(at, from.size(), to);
    }
    return text;
  }

  static void put_nan(const fs::path& file) {
    std::string bytes = read_text(file);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(bytes.data() + bytes.size() - 4, &nan, 4);
    write_text(file, bytes);
  }
};

/// Runs every row; the message has all parts, nothing goes to standard output and no file changes.
inline void expect_wrong(const std::string& verb, std::initializer_list<WrongInput> rows) {
  static const WrongInputFolder folder;
  EXPECT_GE(rows.size(), 10u) << verb;
  for (const WrongInput& row : rows) {
    const std::set<std::string> before = folder.listing();
    const Outcome outcome = folder.run(verb + " " + row.arguments);
    const std::string tell = verb + " " + row.arguments + "\n" + outcome.err;
    EXPECT_EQ(outcome.code, row.code) << tell;
    EXPECT_EQ(outcome.out, "") << tell;
    EXPECT_NE(outcome.err.find("shardtune: error: "), std::string::npos) << tell;
    EXPECT_GE(row.parts.size(), 3u) << tell;
    for (const char* part : row.parts)
      EXPECT_NE(outcome.err.find(part), std::string::npos) << "lacks '" << part << "': " << tell;
    EXPECT_TRUE(folder.listing() == before) << "files changed: " << tell;
  }
}

}  // namespace shardtune::testing
