#include "trainer/config.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

#include "io/file.h"
#include "io/json.h"
#include "io/yaml_node.h"
#include "trainer/config_hints.h"

namespace shardtune::trainer {
namespace {

using io::YamlNode;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr double kMaxCount = 1e12;
constexpr io::NumberRange kPositive{1, kMaxCount};
constexpr io::NumberRange kFromZero{0, kMaxCount};
constexpr double kMaxSeed = 9007199254740992.0;  // 2^53: every integer up to it is a double

/// What reading a section may find: errors of the user, and features to come.
class Findings {
 public:
  io::ConfigErrors& errors() { return errors_; }
  void unsupported(const YamlNode& section, std::string_view key, const std::string& what) {
    unsupported_.push_back(section.section(key).where() + ": " + what +
                           " is not there yet, see docs/status.md.");
  }

  void throw_if_any() const {
    std::vector<std::string> messages;
    for (const auto* list : {&errors_.messages(), &unsupported_}) {
      for (const std::string& message : *list) {
        // Keys that two readers look at (ours and a method's own) are told once.
        if (std::find(messages.begin(), messages.end(), message) == messages.end())
          messages.push_back(message);
      }
    }
    if (messages.empty())
      return;
    std::string text;
    for (const std::string& message : messages)
      text += (text.empty() ? "" : "\n") + message;
    if (errors_.messages().empty())
      throw UnsupportedError(text);
    throw ConfigError(text);
  }

 private:
  io::ConfigErrors errors_;
  std::vector<std::string> unsupported_;
};

YamlNode open_section(const YamlNode& root, std::string_view name) {
  YamlNode section = root.section(name);
  hint_foreign_keys(section, name);
  return section;
}

void read_model(const YamlNode& root, ModelSection& model) {
  const YamlNode section = open_section(root, "model");
  const auto path = section.string("model_name_or_path");
  model.model_name_or_path = path.value_or("");
  if (model.model_name_or_path.empty()) {
    section.error("model_name_or_path",
                  "expected the folder or .gguf file of a model, found nothing. Write for example "
                  "'model_name_or_path: models/SmolLM2-135M-Instruct'.");
  }
  model.compute_dtype =
      section.choice_or("compute_dtype", "auto", {"auto", "float32", "bfloat16", "int8"});
  section.finish();
}

void read_quantization(const YamlNode& root, RunConfig& config) {
  const YamlNode section = open_section(root, "quantization");
  quant::QuantizationOptions& options = config.quantization;
  options.method = section.choice_or("method", "none", quant::frozen_formats().names());
  options.block_size = section.integer_or("block_size", 64, {32, 4096});
  if (options.block_size > 0 && !std::has_single_bit(static_cast<uint64_t>(options.block_size))) {
    section.error("block_size", "expected a power of two in [32, 4096], found " +
                                    std::to_string(options.block_size) + ". Write 64.");
  }
  options.double_quant = section.boolean_or("double_quant", false);
  const bool has_blocks = options.method == "nf4" || options.method == "fp4";
  if (!has_blocks && (section.has("block_size") || options.double_quant)) {
    config.notices.push_back(
        "quantization.block_size and quantization.double_quant belong to nf4 and fp4 "
        "and have no effect with method " +
        options.method);
  }
  section.finish();
}

data::DatasetFile read_dataset_file(const YamlNode& element, Findings& findings) {
  data::DatasetFile file;
  if (element.is_scalar()) {
    file.path = element.scalar_text();
    return file;
  }
  file.path = element.string_or("path", "");
  if (file.path.empty())
    element.error("path", "expected a file, found nothing. Write for example 'path: train.jsonl'.");
  std::vector<std::string> formats = data::dataset_formats().names();
  if (std::find(formats.begin(), formats.end(), "auto") == formats.end())
    formats.insert(formats.begin(), "auto");
  const std::vector<std::string> later = {"preference"};
  std::vector<std::string> choices = formats;
  for (const std::string& name : later) {
    if (std::find(formats.begin(), formats.end(), name) == formats.end())
      choices.push_back(name);
  }
  file.format = element.choice_or("format", "auto", choices);
  if (std::find(formats.begin(), formats.end(), file.format) == formats.end())
    findings.unsupported(element, "format", "data format '" + file.format + "'");
  file.task_id = static_cast<int32_t>(element.integer_or("task_id", -1, {0, 65535}));
  const YamlNode columns = element.section("columns");
  for (const char* word :
       {"prompt", "completion", "messages", "role", "content", "text", "instruction", "input",
        "output", "history", "system", "conversations", "from", "value", "tools"}) {
    if (const auto key = columns.string(word))
      file.columns.emplace_back(word, *key);
  }
  columns.finish();
  element.finish();
  return file;
}

std::string number_text(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return buffer;
}

void read_eval_split(const YamlNode& section, DataSection& data) {
  data.eval_split = section.number_or("eval_split", 0.0, {0.0, 1e15});
  if (data.eval_split >= 1.0 && data.eval_split != std::floor(data.eval_split))
    section.error("eval_split", "expected a share below 1 or a whole number of samples, found " +
                                    number_text(data.eval_split) +
                                    ". Write for example 'eval_split: 0.05' or 'eval_split: 200'.");
  if (data.eval_split > 0.0 && !data.eval.empty())
    section.error("eval_split",
                  "expected either data.eval or data.eval_split, found both. Remove one of them.");
}

void read_data(const YamlNode& root, DataSection& data, Findings& findings) {
  const YamlNode section = open_section(root, "data");
  for (const YamlNode& element : section.elements("train"))
    data.train.push_back(read_dataset_file(element, findings));
  if (data.train.empty()) {
    section.error("train",
                  "expected at least one file, found none. Write for example "
                  "'train: [{path: train.jsonl}]'.");
  }
  for (const YamlNode& element : section.elements("eval"))
    data.eval.push_back(read_dataset_file(element, findings));
  read_eval_split(section, data);
  std::vector<std::string> templates = data::chat_templates().names();
  templates.insert(templates.begin(), {"auto", "none"});
  data.chat_template = section.choice_or("chat_template", "auto", templates);
  data.max_length = section.integer_or("max_length", 1024, {2, 1 << 24});
  data.packing = section.boolean_or("packing", true);
  const bool pretrain = root.section("training").string_or("objective", "sft") == "pretrain";
  const std::string train_on = section.choice_or("train_on", pretrain ? "all" : "completion",
                                                 {"completion", "assistant", "all"});
  if (pretrain && train_on != "all") {
    section.error("train_on", "expected all with 'objective: pretrain', found " + train_on +
                                  ". Write 'train_on: all' or 'objective: sft'.");
  }
  data.train_on = train_on == "all"         ? data::TrainOn::kAll
                  : train_on == "assistant" ? data::TrainOn::kAssistant
                                            : data::TrainOn::kCompletion;
  section.finish();
}

bool is_override(const YamlNode& section, std::string_view key) {
  return section.section(key).where().find("--set") != std::string::npos;
}

/// How long the run is: epochs or steps. One given by --set replaces the other of the file.
void read_duration(const YamlNode& section, TrainingSection& training) {
  const auto epochs = section.integer("num_train_epochs", {1, 1e6});
  const auto steps = section.integer("max_steps", kPositive);
  if (epochs && steps &&
      is_override(section, "num_train_epochs") == is_override(section, "max_steps")) {
    section.error("max_steps",
                  "expected either max_steps or num_train_epochs, found both. Remove "
                  "one of them.");
  }
  if (steps && (!epochs || is_override(section, "max_steps"))) {
    training.max_steps = *steps;
    training.num_train_epochs = 0;
  } else {
    training.num_train_epochs = epochs.value_or(3);
  }
  training.stop_at_step = section.integer_or("stop_at_step", 0, kFromZero);
}

void read_learning_rate(const YamlNode& section, TrainingSection& training) {
  training.learning_rate = section.number_or("learning_rate", 2e-4, {0.0, 1e3});
  training.lr_scheduler_type =
      section.choice_or("lr_scheduler_type", "linear", optim::schedule_names());
  training.warmup_ratio = section.number_or("warmup_ratio", 0.0, {0.0, 1.0});
  training.warmup_steps = section.integer_or("warmup_steps", 0, kFromZero);
  const bool has_warmup = training.warmup_ratio > 0.0 || training.warmup_steps > 0;
  if (training.lr_scheduler_type == "constant" && has_warmup) {
    section.error("lr_scheduler_type",
                  "expected no warm-up with constant, found warmup_ratio or warmup_steps. Write "
                  "'lr_scheduler_type: constant_with_warmup'.");
  }
  training.max_grad_norm = section.number_or("max_grad_norm", 1.0, {0.0, 1e12});
}

void read_training(const YamlNode& root, TrainingSection& training, Findings& findings) {
  const YamlNode section = open_section(root, "training");
  const std::vector<std::string> later = {"dpo", "orpo", "kto", "simpo", "distillation"};
  std::vector<std::string> objectives = {"sft", "pretrain"};
  objectives.insert(objectives.end(), later.begin(), later.end());
  training.objective = section.choice_or("objective", "sft", objectives);
  if (std::find(later.begin(), later.end(), training.objective) != later.end())
    findings.unsupported(section, "objective", "objective '" + training.objective + "'");
  read_duration(section, training);
  training.micro_batch_size = section.integer_or("micro_batch_size", 1, {1, 1 << 20});
  training.global_batch_size = section.integer_or("global_batch_size", 16, {1, 1 << 24});
  if (training.global_batch_size < training.micro_batch_size) {
    section.error("global_batch_size", "expected at least micro_batch_size (" +
                                           std::to_string(training.micro_batch_size) + "), found " +
                                           std::to_string(training.global_batch_size) +
                                           ". It counts the rows of one "
                                           "optimizer step over all ranks.");
  }
  read_learning_rate(section, training);
  training.gradient_checkpointing = section.boolean_or("gradient_checkpointing", false);
  training.seed = static_cast<uint64_t>(section.integer_or("seed", 42, {0, kMaxSeed}));
  section.finish();
}

void read_offload(const YamlNode& zero, const std::string& name, RunConfig& config,
                  OffloadSection& offload) {
  const YamlNode section = zero.section(name);
  refuse_offload_keys_without_effect(section);
  offload.device = section.choice_or("device", "none", {"none", "cpu", "nvme"});
  offload.nvme_path = section.string_or("nvme_path", "");
  if (offload.device == "cpu") {
    section.error("device",
                  "expected none or nvme with 'parallel.device: cpu', found cpu: everything is in "
                  "the CPU's memory already, so there is nothing to gain. Write 'device: nvme' "
                  "with nvme_path to need less of it.");
  }
  if (offload.is_nvme() && offload.nvme_path.empty()) {
    section.error("nvme_path",
                  "expected a folder on a local disk with 'device: nvme', found nothing. Write for "
                  "example 'nvme_path: /var/tmp'.");
  }
  if (!offload.is_nvme() && !offload.nvme_path.empty()) {
    config.notices.push_back("parallel.zero_optimization." + name +
                             ".nvme_path has no effect with device " + offload.device);
    offload.nvme_path.clear();
  }
  section.finish();
}

void read_base_sharing(const YamlNode& section, ParallelSection& parallel) {
  if (!section.boolean_or("share_base_per_host", false))
    return;
  parallel.base_sharing = parallel::BaseSharing::kPerHost;
  if (parallel.stage == parallel::ZeroStage::k3)
    section.error(
        "share_base_per_host",
        "expected false with stage 3, found true: stage 3 shards the base over the ranks, "
        "so no host holds a whole one to share. Write 'stage: 2', or leave it out.");
  if (parallel.offload_param.is_nvme())
    section.error(
        "share_base_per_host",
        "expected false with offload_param on nvme, found true: every rank reads the base "
        "from a file of its own, so there is none in memory to share. Choose one of the "
        "two.");
}

void read_parallel(const YamlNode& root, RunConfig& config, Findings& findings) {
  ParallelSection& parallel = config.parallel;
  const YamlNode section = open_section(root, "parallel");
  refuse_aio(section);
  parallel.device = section.choice_or("device", "cpu", {"cpu", "cuda"});
  if (parallel.device == "cuda")
    findings.unsupported(section, "device", "device cuda");
  parallel.threads = section.integer_or("threads", 0, {0, 1024});
  parallel.heartbeat_seconds = section.number_or("heartbeat_seconds", 10.0, {0.5, 3600.0});
  parallel.step_timeout_seconds = section.number_or("step_timeout_seconds", 0.0, {0.0, 1e6});
  const YamlNode zero = section.section("zero_optimization");
  refuse_zero_keys_without_effect(zero);
  const int64_t stage = zero.integer_or("stage", 0, {0, 3});
  if (stage >= 0 && stage <= 3)
    parallel.stage = parallel::zero_stage_from(stage);
  read_offload(zero, "offload_optimizer", config, parallel.offload_optimizer);
  read_offload(zero, "offload_param", config, parallel.offload_param);
  zero.finish();
  read_base_sharing(section, parallel);
  section.finish();
}

bool is_same_folder(const std::string& one, const std::string& other) {
  std::error_code error;
  return !one.empty() && !other.empty() && fs::equivalent(one, other, error);
}

void read_run_folder(const YamlNode& root, RunConfig& config, Findings& findings) {
  const YamlNode checkpoint = open_section(root, "checkpoint");
  config.checkpoint.output_dir = checkpoint.string_or("output_dir", "");
  if (config.checkpoint.output_dir.empty()) {
    checkpoint.error("output_dir",
                     "expected a folder for the run, found nothing. Write for "
                     "example 'output_dir: runs/first'.");
  }
  if (is_same_folder(config.checkpoint.output_dir, config.model.model_name_or_path))
    checkpoint.error("output_dir",
                     "expected a folder of the run's own, found the model's. Write for example "
                     "'output_dir: runs/first'.");
  config.checkpoint.save_steps = checkpoint.integer_or("save_steps", 0, kFromZero);
  config.checkpoint.save_total_limit = checkpoint.integer_or("save_total_limit", 0, kFromZero);
  checkpoint.finish();

  const YamlNode logging = open_section(root, "logging");
  config.logging.logging_steps = logging.integer_or("logging_steps", 1, kPositive);
  config.logging.tensorboard = logging.boolean_or("tensorboard", false);
  logging.finish();

  const YamlNode eval = open_section(root, "eval");
  config.eval.eval_steps = eval.integer_or("eval_steps", 0, kFromZero);
  if (config.eval.eval_steps > 0 && config.data.eval.empty() && config.data.eval_split == 0.0) {
    eval.error("eval_steps",
               "expected data.eval to name a file, found none. Add for example "
               "'eval: [{path: eval.jsonl}]' or 'eval_split: 0.05' to data.");
  }
  eval.finish();
}

std::vector<std::pair<std::string, std::string>> sgd_keys(const YamlNode& section) {
  const io::NumberRange share{0.0, 1.0, false, true};
  return {{"dampening", number_text(section.number_or("dampening", 0.0, share))},
          {"momentum", number_text(section.number_or("momentum", 0.0, share))},
          {"nesterov", section.boolean_or("nesterov", false) ? "true" : "false"}};
}

/// What stands between the optimizer and the offload of its states.
void check_offloaded_states(const YamlNode& root, const RunConfig& config) {
  if (!config.parallel.offload_optimizer.is_nvme() || config.optimizer.optimizer == nullptr ||
      !config.optimizer.optimizer->state_names().empty())
    return;
  const YamlNode zero = root.section("parallel").section("zero_optimization");
  zero.error("offload_optimizer",
             "expected an optimizer with states, found sgd without momentum, which has none. "
             "Remove offload_optimizer, or set optimizer.momentum.");
}

void read_optimizer(const YamlNode& root, OptimizerSection& optimizer) {
  const YamlNode section = open_section(root, "optimizer");
  optimizer.name = section.choice_or("name", "adamw", optim::optimizer_names());
  optimizer.weight_decay = section.number_or("weight_decay", 0.0, {0.0, 1e6});
  if (optimizer.name == "sgd") {
    optimizer.keys = sgd_keys(section);
  } else {
    const io::NumberRange beta{0.0, 1.0, false, true};
    const std::vector<double> betas = section.numbers_or("betas", {0.9, 0.999}, beta);
    std::string list;
    for (const double value : betas)
      list += (list.empty() ? "" : ", ") + number_text(value);
    optimizer.keys = {{"betas", "[" + list + "]"},
                      {"eps", number_text(section.number_or("eps", 1e-8, {0.0, 1.0, true}))}};
  }
  optimizer.optimizer = optim::make_optimizer(section);
  section.finish();
}

void read_adapter(const YamlNode& root, AdapterSection& adapter) {
  const YamlNode section = open_section(root, "adapter");
  adapter.options = adapters::adapter_options_from_yaml(section);
  if (adapter.options != nullptr)
    adapter.keys = adapter.options->keys();
}

}  // namespace

RunConfig parse_config(std::string_view text, const std::string& name,
                       const std::vector<std::string>& overrides) {
  Findings findings;
  YamlNode root = YamlNode::parse(text, name, findings.errors());
  findings.throw_if_any();
  for (const std::string& assignment : overrides)
    root.set_override(assignment);
  hint_foreign_keys(root, "");
  refuse_aio(root);

  RunConfig config;
  read_model(root, config.model);
  read_quantization(root, config);
  read_adapter(root, config.adapter);
  read_data(root, config.data, findings);
  read_training(root, config.training, findings);
  read_optimizer(root, config.optimizer);
  read_parallel(root, config, findings);
  check_offloaded_states(root, config);
  read_run_folder(root, config, findings);
  root.finish();
  findings.throw_if_any();
  return config;
}

RunConfig load_config(const fs::path& path, const std::vector<std::string>& overrides) {
  return parse_config(io::read_text_file(path, kMaxConfigBytes), path.string(), overrides);
}

}  // namespace shardtune::trainer
