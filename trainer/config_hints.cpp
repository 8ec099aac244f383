#include "trainer/config_hints.h"

#include <string>

namespace shardtune::trainer {
namespace {

struct ForeignKey {
  std::string_view section;  // ours, where the key would be looked for
  std::string_view theirs;
  std::string_view ours;
};

// transformers, PEFT, LLaMA-Factory, axolotl, torchtune, DeepSpeed, mlx-lm.
constexpr ForeignKey kForeignKeys[] = {
    {"model", "base_model", "model.model_name_or_path"},
    {"model", "name_or_path", "model.model_name_or_path"},
    {"model", "torch_dtype", "model.compute_dtype"},
    {"model", "dtype", "model.compute_dtype"},
    {"model", "infer_dtype", "model.compute_dtype"},
    {"model", "bf16", "model.compute_dtype: bfloat16"},
    {"quantization", "load_in_4bit", "quantization.method: nf4"},
    {"quantization", "load_in_8bit", "quantization.method: int8"},
    {"quantization", "quantization_bit", "quantization.method"},
    {"quantization", "quantization_type", "quantization.method"},
    {"quantization", "bnb_4bit_quant_type", "quantization.method"},
    {"quantization", "bnb_4bit_use_double_quant", "quantization.double_quant"},
    {"quantization", "double_quantization", "quantization.double_quant"},
    {"quantization", "bnb_4bit_compute_dtype", "model.compute_dtype"},
    {"adapter", "finetuning_type", "adapter.method"},
    {"adapter", "peft_type", "adapter.method"},
    {"adapter", "r", "adapter.lora_rank"},
    {"adapter", "lora_r", "adapter.lora_rank"},
    {"adapter", "rank", "adapter.lora_rank"},
    {"adapter", "alpha", "adapter.lora_alpha"},
    {"adapter", "dropout", "adapter.lora_dropout"},
    {"adapter", "lora_target", "adapter.target_modules"},
    {"adapter", "additional_target", "adapter.modules_to_save"},
    {"adapter", "lora_modules_to_save", "adapter.modules_to_save"},
    {"adapter", "lora_model_dir", "adapter.adapter_name_or_path"},
    {"model", "adapter_name_or_path", "adapter.adapter_name_or_path"},
    {"adapter", "lora_target_modules", "adapter.target_modules"},
    {"adapter", "lora_target_linear", "adapter.target_modules: all-linear"},
    {"adapter", "lora_attn_modules", "adapter.target_modules"},
    {"data", "cutoff_len", "data.max_length"},
    {"data", "max_seq_length", "data.max_length"},
    {"data", "max_seq_len", "data.max_length"},
    {"data", "sequence_len", "data.max_length"},
    {"data", "block_size", "data.max_length"},
    {"data", "sample_packing", "data.packing"},
    {"data", "packed", "data.packing"},
    {"data", "neat_packing", "data.packing"},
    {"data", "template", "data.chat_template"},
    {"data", "dataset", "data.train"},
    {"data", "datasets", "data.train"},
    {"data", "train_file", "data.train"},
    {"data", "eval_dataset", "data.eval"},
    {"data", "test_datasets", "data.eval"},
    {"data", "validation_file", "data.eval"},
    {"data", "val_size", "data.eval_split"},
    {"data", "val_set_size", "data.eval_split"},
    {"data", "train_on_prompt", "data.train_on"},
    {"data", "train_on_inputs", "data.train_on"},
    {"data", "train_on_input", "data.train_on"},
    {"data", "completion_only_loss", "data.train_on: completion"},
    {"data", "assistant_only_loss", "data.train_on: assistant"},
    {"training", "stage", "training.objective"},
    {"training", "per_device_train_batch_size", "training.micro_batch_size"},
    {"training", "train_micro_batch_size_per_gpu", "training.micro_batch_size"},
    {"training", "batch_size", "training.micro_batch_size"},
    {"training", "gradient_accumulation_steps",
     "training.global_batch_size (micro_batch_size x accumulation x ranks)"},
    {"training", "train_batch_size", "training.global_batch_size"},
    {"training", "num_epochs", "training.num_train_epochs"},
    {"training", "epochs", "training.num_train_epochs"},
    {"training", "iters", "training.max_steps"},
    {"training", "lr", "training.learning_rate"},
    {"training", "lr_scheduler", "training.lr_scheduler_type"},
    {"training", "num_warmup_steps", "training.warmup_steps"},
    {"training", "gradient_clipping", "training.max_grad_norm"},
    {"training", "clip_grad_norm", "training.max_grad_norm"},
    {"training", "enable_activation_checkpointing", "training.gradient_checkpointing"},
    {"training", "grad_checkpoint", "training.gradient_checkpointing"},
    {"training", "recompute", "training.gradient_checkpointing"},
    {"training", "output_dir", "checkpoint.output_dir"},
    {"training", "weight_decay", "optimizer.weight_decay"},
    {"training", "optim", "optimizer.name"},
    {"training", "threads", "parallel.threads"},
    {"optimizer", "adam_beta1", "optimizer.betas"},
    {"optimizer", "adam_beta2", "optimizer.betas"},
    {"optimizer", "adam_epsilon", "optimizer.eps"},
    {"optimizer", "lr", "training.learning_rate"},
    {"optimizer", "learning_rate", "training.learning_rate"},
    {"parallel", "zero_stage", "parallel.zero_optimization.stage"},
    {"parallel", "zero_level", "parallel.zero_optimization.stage"},
    {"parallel", "num_threads", "parallel.threads"},
    {"checkpoint", "save_strategy", "checkpoint.save_steps"},
    {"checkpoint", "save_every", "checkpoint.save_steps"},
    {"checkpoint", "resume_from_checkpoint", "the option --resume of the command line"},
    {"logging", "log_every_n_steps", "logging.logging_steps"},
    {"logging", "steps_per_report", "logging.logging_steps"},
    {"logging", "steps_per_print", "logging.logging_steps"},
    {"logging", "use_tensorboard", "logging.tensorboard"},
    {"eval", "eval_strategy", "eval.eval_steps"},
    {"eval", "steps_per_eval", "eval.eval_steps"},
    {"eval", "run_val_every_n_steps", "eval.eval_steps"},
    {"", "lora", "adapter"},
    {"", "peft", "adapter"},
    {"", "lora_rank", "adapter.lora_rank"},
    {"", "lora_alpha", "adapter.lora_alpha"},
    {"", "lora_dropout", "adapter.lora_dropout"},
    {"", "target_modules", "adapter.target_modules"},
    {"", "model_name_or_path", "model.model_name_or_path"},
    {"", "learning_rate", "training.learning_rate"},
    {"", "num_train_epochs", "training.num_train_epochs"},
    {"", "max_steps", "training.max_steps"},
    {"", "micro_batch_size", "training.micro_batch_size"},
    {"", "global_batch_size", "training.global_batch_size"},
    {"", "zero_optimization", "parallel.zero_optimization"},
    {"", "deepspeed", "parallel.zero_optimization"},
    {"", "output_dir", "checkpoint.output_dir"},
    {"", "save_steps", "checkpoint.save_steps"},
    {"", "logging_steps", "logging.logging_steps"},
    {"", "eval_steps", "eval.eval_steps"},
    {"", "seed", "training.seed"},
    {"", "threads", "parallel.threads"},
};

struct Reason {
  std::string_view key;
  std::string_view reason;
};

constexpr std::string_view kNoBuckets = "gradients move tensor by tensor in a fixed order";
constexpr std::string_view kUnitByUnit =
    "units are gathered one ahead, into buffers of the largest";

constexpr Reason kZeroReasons[] = {
    {"overlap_comm", "exchange is scheduled by the program"},
    {"contiguous_gradients", "gradients are always kept in one buffer per tensor"},
    {"reduce_scatter", "gradients always go to their owner alone"},
    {"reduce_bucket_size", kNoBuckets},
    {"allgather_bucket_size", kNoBuckets},
    {"allgather_partitions", kNoBuckets},
    {"round_robin_gradients", kNoBuckets},
    {"sub_group_size", "the program sizes the groups that offloaded states move in"},
    {"cpu_offload", "it is DeepSpeed's old name of offload_optimizer"},
    {"cpu_offload_param", "it is DeepSpeed's old name of offload_param"},
    {"cpu_offload_use_pin_memory", "there is no device memory to pin it for"},
    {"stage3_prefetch_bucket_size", kUnitByUnit},
    {"stage3_param_persistence_threshold", kUnitByUnit},
    {"stage3_max_live_parameters", kUnitByUnit},
    {"stage3_max_reuse_distance", kUnitByUnit},
    {"stage3_gather_16bit_weights_on_model_save", "adapters are always saved whole in float32"},
};

constexpr Reason kOffloadReasons[] = {
    {"pin_memory", "buffers are registered with the kernel where it allows it"},
    {"buffer_count", "buffers are sized by the program"},
    {"buffer_size", "buffers are sized by the program"},
    {"max_in_cpu", "buffers are sized by the program"},
    {"pipeline_read", "reads are always double-buffered"},
    {"pipeline_write", "writes are always double-buffered"},
    {"ratio", "states are offloaded whole"},
    {"fast_init", "start-up has one way"},
};

constexpr Reason kAioReasons[] = {
    {"aio", "block size, queue depth and threads of NVMe offload are chosen by the program"},
};

template <size_t N>
void refuse(const io::YamlNode& node, const Reason (&reasons)[N]) {
  for (const Reason& entry : reasons) {
    if (node.has(entry.key)) {
      node.error(entry.key,
                 "has no effect here: " + std::string(entry.reason) + ". Remove the key.");
    }
  }
}

}  // namespace

void hint_foreign_keys(const io::YamlNode& node, std::string_view section) {
  for (const ForeignKey& key : kForeignKeys) {
    if (section.empty() || key.section == section)
      node.alias_hint(key.theirs, key.ours);
  }
}

void refuse_zero_keys_without_effect(const io::YamlNode& zero_optimization) {
  refuse(zero_optimization, kZeroReasons);
}

void refuse_offload_keys_without_effect(const io::YamlNode& offload) {
  refuse(offload, kOffloadReasons);
}

void refuse_aio(const io::YamlNode& section) { refuse(section, kAioReasons); }

}  // namespace shardtune::trainer
