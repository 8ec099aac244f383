// The resolved configuration as text: what a run directory keeps, ranks compare and a resume
// checks.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "io/file.h"
#include "io/json.h"
#include "kernels/gemm.h"
#include "trainer/config.h"

namespace shardtune::trainer {
namespace {

/// Dotted key and its value as YAML flow text.
using Entry = std::pair<std::string, std::string>;

/// A JSON string is a YAML double-quoted string.
std::string quoted(const std::string& text) { return io::Json(text).dump(); }
std::string text_of(bool value) { return value ? "true" : "false"; }
std::string text_of(int64_t value) { return std::to_string(value); }
std::string text_of(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return buffer;
}

std::string text_of(const std::vector<data::DatasetFile>& files) {
  std::string list;
  for (const data::DatasetFile& file : files) {
    std::string columns;
    for (const auto& [word, key] : file.columns)
      columns += (columns.empty() ? "" : ", ") + word + ": " + quoted(key);
    list += std::string(list.empty() ? "" : ", ") + "{path: " + quoted(file.path) +
            ", format: " + file.format + (columns.empty() ? "" : ", columns: {" + columns + "}") +
            (file.task_id < 0 ? "" : ", task_id: " + std::to_string(file.task_id)) + "}";
  }
  return "[" + list + "]";
}

std::string text_of(data::TrainOn train_on) {
  switch (train_on) {
    case data::TrainOn::kAll:
      return "all";
    case data::TrainOn::kAssistant:
      return "assistant";
    default:
      return "completion";
  }
}

std::string text_of(const OffloadSection& offload) {
  const std::string path =
      offload.nvme_path.empty() ? "" : ", nvme_path: " + quoted(offload.nvme_path);
  return "{device: " + offload.device + path + "}";
}

void add_training(const TrainingSection& training, std::vector<Entry>& entries) {
  entries.emplace_back("training.objective", training.objective);
  if (training.max_steps > 0)
    entries.emplace_back("training.max_steps", text_of(training.max_steps));
  else
    entries.emplace_back("training.num_train_epochs", text_of(training.num_train_epochs));
  entries.emplace_back("training.stop_at_step", text_of(training.stop_at_step));
  entries.emplace_back("training.micro_batch_size", text_of(training.micro_batch_size));
  entries.emplace_back("training.global_batch_size", text_of(training.global_batch_size));
  entries.emplace_back("training.learning_rate", text_of(training.learning_rate));
  entries.emplace_back("training.lr_scheduler_type", training.lr_scheduler_type);
  entries.emplace_back("training.warmup_ratio", text_of(training.warmup_ratio));
  entries.emplace_back("training.warmup_steps", text_of(training.warmup_steps));
  entries.emplace_back("training.max_grad_norm", text_of(training.max_grad_norm));
  entries.emplace_back("training.gradient_checkpointing", text_of(training.gradient_checkpointing));
  entries.emplace_back("training.seed", text_of(static_cast<int64_t>(training.seed)));
}

std::vector<Entry> all_entries(const RunConfig& config) {
  std::vector<Entry> entries = {
      {"model.model_name_or_path", quoted(config.model.model_name_or_path)},
      {"model.compute_dtype", config.model.compute_dtype},
      {"quantization.method", config.quantization.method},
      {"quantization.block_size", text_of(config.quantization.block_size)},
      {"quantization.double_quant", text_of(config.quantization.double_quant)},
  };
  for (const auto& [key, value] : config.adapter.keys)
    entries.emplace_back("adapter." + key, value);
  entries.emplace_back("data.train", text_of(config.data.train));
  if (!config.data.eval.empty())
    entries.emplace_back("data.eval", text_of(config.data.eval));
  if (config.data.eval_split > 0.0)
    entries.emplace_back("data.eval_split", text_of(config.data.eval_split));
  entries.emplace_back("data.chat_template", config.data.chat_template);
  entries.emplace_back("data.max_length", text_of(config.data.max_length));
  entries.emplace_back("data.packing", text_of(config.data.packing));
  entries.emplace_back("data.train_on", text_of(config.data.train_on));
  add_training(config.training, entries);
  entries.emplace_back("optimizer.name", config.optimizer.name);
  for (const auto& [key, value] : config.optimizer.keys)
    entries.emplace_back("optimizer." + key, value);
  entries.emplace_back("optimizer.weight_decay", text_of(config.optimizer.weight_decay));
  entries.emplace_back("parallel.device", config.parallel.device);
  entries.emplace_back("parallel.zero_optimization",
                       "{stage: " + text_of(static_cast<int64_t>(config.parallel.stage)) +
                           ", offload_optimizer: " + text_of(config.parallel.offload_optimizer) +
                           ", offload_param: " + text_of(config.parallel.offload_param) + "}");
  entries.emplace_back("parallel.share_base_per_host",
                       text_of(config.parallel.base_sharing == parallel::BaseSharing::kPerHost));
  entries.emplace_back("parallel.threads", text_of(config.parallel.threads));
  entries.emplace_back("parallel.heartbeat_seconds", text_of(config.parallel.heartbeat_seconds));
  entries.emplace_back("parallel.step_timeout_seconds",
                       text_of(config.parallel.step_timeout_seconds));
  entries.emplace_back("checkpoint.output_dir", quoted(config.checkpoint.output_dir));
  entries.emplace_back("checkpoint.save_steps", text_of(config.checkpoint.save_steps));
  entries.emplace_back("checkpoint.save_total_limit", text_of(config.checkpoint.save_total_limit));
  entries.emplace_back("logging.logging_steps", text_of(config.logging.logging_steps));
  entries.emplace_back("logging.tensorboard", text_of(config.logging.tensorboard));
  entries.emplace_back("eval.eval_steps", text_of(config.eval.eval_steps));
  return entries;
}

bool starts_with(const std::string& text, std::string_view prefix) {
  return text.rfind(prefix, 0) == 0;
}

}  // namespace

std::string resolved_text(const RunConfig& config) {
  std::string text;
  std::string section;
  for (const auto& [key, value] : all_entries(config)) {
    const size_t dot = key.find('.');
    if (key.substr(0, dot) != section) {
      section = key.substr(0, dot);
      text += section + ":\n";
    }
    text += "  " + key.substr(dot + 1) + ": " + value + "\n";
  }
  return text;
}

std::string config_hash(const RunConfig& config) {
  return io::sha256_hex(io::as_bytes(resolved_text(config)));
}

std::vector<std::pair<std::string, std::string>> resume_keys(const RunConfig& config) {
  std::vector<Entry> kept;
  for (Entry& entry : all_entries(config)) {
    const bool free =
        starts_with(entry.first, "logging.") || starts_with(entry.first, "checkpoint.") ||
        starts_with(entry.first, "parallel.") || entry.first == "training.stop_at_step";
    if (!free)
      kept.push_back(std::move(entry));
  }
  return kept;
}

DType resolve_compute_dtype(const std::string& compute_dtype) {
  if (compute_dtype == "auto" || compute_dtype == "int8")
    return kernels::has_fast_bfloat16() ? DType::kBFloat16 : DType::kFloat32;
  return compute_dtype == "bfloat16" ? DType::kBFloat16 : DType::kFloat32;
}

}  // namespace shardtune::trainer
