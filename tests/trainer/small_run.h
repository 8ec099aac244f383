// Whole trainings of the tiny model in a temporary folder, and what of them must be equal.
#pragma once

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "adapters/adapter.h"
#include "core/parallel_for.h"
#include "io/json.h"
#include "parallel/thread_communicator.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/config.h"
#include "trainer/train.h"

namespace shardtune::testing {

class SmallRun {
 public:
  explicit SmallRun(const TinyShape& shape = {}) {
    make_tiny_model(folder_.path() / "model", shape);
    write_records(folder_.path() / "train.jsonl", 30);
    write_records(folder_.path() / "eval.jsonl", 7, 100);
  }

  fs::path path(const std::string& name) const { return folder_.path() / name; }

  /// A configuration writing to `output`: 5 micro-batches a step, the last of them short.
  trainer::RunConfig config(const std::string& output,
                            const std::vector<std::string>& overrides = {}) const {
    return trainer::parse_config(config_text(output), "run.yaml", overrides);
  }
  std::string config_text(const std::string& output) const {
    return "model: {model_name_or_path: \"" + path("model").string() +
           R"(", compute_dtype: float32}
quantization: {method: nf4, block_size: 64, double_quant: true}
adapter: {lora_rank: 16, lora_alpha: 32, lora_dropout: 0.1}
data:
  train: [{path: ")" +
           path("train.jsonl").string() +
           R"(", format: completion}]
  eval: [{path: ")" +
           path("eval.jsonl").string() +
           R"(", format: completion}]
  chat_template: chatml
  max_length: 96
  packing: false
training: {max_steps: 4, micro_batch_size: 2, global_batch_size: 9, learning_rate: 1e-2,
           lr_scheduler_type: cosine, warmup_steps: 2, max_grad_norm: 0.5}
checkpoint: {output_dir: ")" +
           path(output).string() + "\"}\n";
  }

  /// Runs on ranks that are threads; the result of rank 0.
  trainer::TrainResult run(const trainer::RunConfig& config, int ranks = 1,
                           trainer::TrainOptions options = {}) const {
    options.catch_signals = false;
    options.identity = "test";
    trainer::TrainResult result;
    parallel::run_on_threads(ranks, [&](parallel::Communicator& comm) {
      const trainer::TrainResult own = trainer::train(config, comm, options);
      if (comm.rank() == 0)
        result = own;
    });
    return result;
  }

  std::string adapter_bytes(const std::string& output) const {
    for (const adapters::AdapterFolder& names :
         {adapters::kPeftFolder, adapters::kAdapterHubFolder}) {
      const std::string bytes = read_text(path(output) / "adapter" / names.weights_file);
      if (!bytes.empty())
        return bytes;
    }
    throw std::runtime_error(output + " holds no adapter");
  }

  /// Lines of metrics.jsonl so far; 0 before there is one.
  int num_logged(const std::string& output) const {
    const std::string text = read_text(path(output) / "metrics.jsonl");
    return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
  }

  /// Per step what does not depend on time: "loss grad_norm learning_rate tokens eval_loss".
  std::vector<std::string> losses(const std::string& output) const {
    std::vector<std::string> rows;
    std::istringstream lines(read_text(path(output) / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const io::Json json = io::parse_json(line, "metrics.jsonl");
      std::string row;
      for (const char* key :
           {"step", "loss", "grad_norm", "learning_rate", "tokens", "eval_loss"}) {
        const io::Json* value = json.find(key);
        row += value == nullptr ? "- " : value->dump() + " ";
      }
      rows.push_back(row);
    }
    return rows;
  }

 private:
  TempFolder folder_;
};

}  // namespace shardtune::testing
