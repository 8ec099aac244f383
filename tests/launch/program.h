// Runs the program as a user does, and keeps what it wrote.
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "tests/trainer/tiny_model.h"

namespace shardtune::testing {

struct Outcome {
  int code = -1;
  std::string out;
  std::string err;
};

inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text)
    result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

/// A folder with the tiny model, data and a configuration, and the program run in it.
class ProgramFolder {
 public:
  ProgramFolder() {
    make_tiny_model(path("model"));
    write_records(path("train.jsonl"), 24);
    write_records(path("eval.jsonl"), 6, 100);
    write_text(path("run.yaml"), config());
  }

  fs::path path(const std::string& name) const { return folder_.path() / name; }

  static std::string config() {
    return R"(model: {model_name_or_path: model, compute_dtype: float32}
quantization: {method: nf4, block_size: 64, double_quant: true}
adapter: {lora_rank: 4, lora_alpha: 8}
data:
  train: [{path: train.jsonl, format: completion}]
  chat_template: chatml
  max_length: 96
training: {max_steps: 3, micro_batch_size: 1, global_batch_size: 2, learning_rate: 1e-2}
checkpoint: {output_dir: run}
)";
  }

  /// A shell line in the folder; "$st" is the program.
  Outcome shell(const std::string& line) const {
    const std::string out = path(".out").string();
    const std::string err = path(".err").string();
    const std::string command = "cd " + quoted(folder_.path().string()) +
                                " && export OMP_NUM_THREADS=1 && st=" + SHARDTUNE_PROGRAM +
                                " && { " + line + " ; } >" + quoted(out) + " 2>" + quoted(err) +
                                " </dev/null";
    const int status = std::system(command.c_str());
    Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), read_text(out),
                    read_text(err)};
    fs::remove(out);
    fs::remove(err);
    return outcome;
  }
  Outcome run(const std::string& arguments) const { return shell("$st " + arguments); }

 private:
  TempFolder folder_;
};

}  // namespace shardtune::testing
