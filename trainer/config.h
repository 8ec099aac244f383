// The configuration of a run: the sections of the YAML file as plain structs. Reading it is strict
// and tells every problem at once with file and line; nothing else in the program sees YAML. Keys
// of features that are not there yet are known and refused by name (docs/status.md), so that a
// typing error and a missing feature are told apart.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adapters/adapter.h"
#include "core/dtype.h"
#include "data/dataset.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "parallel/sharded_store.h"
#include "quant/frozen_weight.h"

namespace shardtune::trainer {

namespace fs = std::filesystem;

struct ModelSection {
  std::string model_name_or_path;
  std::string compute_dtype = "auto";  // auto | float32 | bfloat16 | int8
  /// Frozen linears in int8; the rest as with auto.
  bool computes_in_int8() const { return compute_dtype == "int8"; }
};

struct DataSection {
  std::vector<data::DatasetFile> train;
  std::vector<data::DatasetFile> eval;  // empty: no evaluation, unless eval_split gives one
  double eval_split = 0.0;              // share (below 1) or count of train's samples; 0 = off
  std::string chat_template = "auto";
  int64_t max_length = 1024;
  bool packing = true;
  data::TrainOn train_on = data::TrainOn::kCompletion;
};

struct TrainingSection {
  std::string objective = "sft";   // sft | pretrain
  int64_t num_train_epochs = 3;    // 0 when max_steps decides
  int64_t max_steps = 0;           // 0 when num_train_epochs decides
  int64_t stop_at_step = 0;        // end early; the schedule still follows the whole run; 0 = off
  int64_t micro_batch_size = 1;    // rows
  int64_t global_batch_size = 16;  // rows of one optimizer step, over all ranks
  double learning_rate = 2e-4;
  std::string lr_scheduler_type = "linear";
  double warmup_ratio = 0.0;
  int64_t warmup_steps = 0;    // wins over warmup_ratio when positive
  double max_grad_norm = 1.0;  // 0 = no clipping
  bool gradient_checkpointing = false;
  uint64_t seed = 42;
};

struct OptimizerSection {
  std::string name = "adamw";
  double weight_decay = 0.0;
  std::unique_ptr<optim::Optimizer> optimizer;
  /// Remaining keys with their values as canonical text, in alphabetical order.
  std::vector<std::pair<std::string, std::string>> keys;
};

struct AdapterSection {
  std::unique_ptr<adapters::AdapterOptions> options;
  std::vector<std::pair<std::string, std::string>> keys;  // as in OptimizerSection
};

/// Where states or frozen parameters live while nobody works with them.
struct OffloadSection {
  std::string device = "none";  // none | nvme
  std::string nvme_path;        // folder of the swap files; "" unless nvme
  bool is_nvme() const { return device == "nvme"; }
};

struct ParallelSection {
  std::string device = "cpu";
  parallel::ZeroStage stage = parallel::ZeroStage::k0;
  OffloadSection offload_optimizer;
  OffloadSection offload_param;
  parallel::BaseSharing base_sharing = parallel::BaseSharing::kNone;  // share_base_per_host
  int64_t threads = 0;                // per rank; 0 = as the process was started
  double heartbeat_seconds = 10.0;    // a rank silent for twice this is lost
  double step_timeout_seconds = 0.0;  // so long without progress in a step; 0 = automatic
};

struct CheckpointSection {
  std::string output_dir;
  int64_t save_steps = 0;        // 0 = only when a run stops early
  int64_t save_total_limit = 0;  // 0 = keep all
};

struct LoggingSection {
  int64_t logging_steps = 1;
  bool tensorboard = false;
};

struct EvalSection {
  int64_t eval_steps = 0;  // 0 = only at the end
};

struct RunConfig {
  ModelSection model;
  quant::QuantizationOptions quantization;
  AdapterSection adapter;
  DataSection data;
  TrainingSection training;
  OptimizerSection optimizer;
  ParallelSection parallel;
  CheckpointSection checkpoint;
  LoggingSection logging;
  EvalSection eval;
  /// Settings that are allowed but have no effect in this run; the trainer logs them.
  std::vector<std::string> notices;
};

/// Reads a configuration file; `overrides` are the "section.key=value" of --set, in order.
/// Errors  MissingInputError: no such file; ConfigError: everything wrong in it, a line each;
///         UnsupportedError: nothing wrong but features that are not there yet, a line each
RunConfig load_config(const fs::path& path, const std::vector<std::string>& overrides);
RunConfig parse_config(std::string_view text, const std::string& name,
                       const std::vector<std::string>& overrides);

/// Every key with its value as YAML, in one fixed order, floats as %.9g: what a run directory keeps
/// in resolved_config.yaml.
std::string resolved_text(const RunConfig& config);

/// SHA-256 of the resolved text: ranks must agree on it.
std::string config_hash(const RunConfig& config);

/// "section.key" and value of every key on which a resume depends: all outside logging, checkpoint,
/// parallel and stop_at_step.
std::vector<std::pair<std::string, std::string>> resume_keys(const RunConfig& config);

/// The dtype of activations that compute_dtype asks for; "auto" and "int8" are bfloat16 where the
/// CPU multiplies it in hardware, else float32.
DType resolve_compute_dtype(const std::string& compute_dtype);

}  // namespace shardtune::trainer
