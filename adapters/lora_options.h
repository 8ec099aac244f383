// LoRA's options to and from configuration files.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "adapters/option_reader.h"
#include "adapters/target_modules.h"
#include "quant/kept_weight.h"

namespace shardtune::adapters {

/// How A and B start. kPissa and kOlora factor the weight itself, so that the change is relative to
/// their own start; kLoftq factors what quantisation took from the weight, and gives it back; kEva
/// starts A with the directions of the linear's inputs (eva.h).
enum class LoraInit { kKaiming, kGaussian, kOrthogonal, kPissa, kOlora, kLoftq, kEva };

/// PEFT's eva_config (eva.h, eva_ranks.h).
struct EvaOptions {
  double rho = 2.0;  // a linear gets at most so many times its rank
  bool use_label_mask = true;
  bool whiten = false;
  bool adjust_scaling_factors = true;  // alpha grows with the rank
};
/// A of each linear by its path, row by row.
using EvaStart = std::map<std::string, std::vector<float>>;

struct LoraOptions {
  int64_t lora_rank = 8;
  double lora_alpha = 16.0;
  double lora_dropout = 0.0;
  bool use_rslora = false;
  bool use_dora = false;
  LoraInit init = LoraInit::kKaiming;
  int64_t qalora_group_size = 0;  // of QA-LoRA: A sees sums of so many inputs; 0: each input
  int64_t pissa_niter = 0;        // subspace iterations; 0: exact
  int64_t loftq_bits = 0;         // 0: not asked for
  double loraplus_lr_ratio = 1.0;
  EvaOptions eva;
  bool has_eva_ranks = false;                 // rank_pattern has every linear's, some of them 0
  std::shared_ptr<const EvaStart> eva_start;  // found with the ranks
  Pattern rank_pattern;
  Pattern alpha_pattern;
  TargetModules targets;
  std::optional<quant::KeptForm> merge_aware;  // how the original weights are kept, if they are
  bool is_new = true;  // read from a run's section, not from a saved adapter

  int64_t rank_of(const std::string& path) const;
  double scale_of(const std::string& path) const;
  /// Columns of A: inputs, or groups of them.
  int64_t columns_of(int64_t inputs) const {
    return qalora_group_size > 0 ? inputs / qalora_group_size : inputs;
  }
  /// Whether ranks are still to be fitted to data.
  bool shares_ranks() const { return init == LoraInit::kEva && eva.rho > 1.0 && !has_eva_ranks; }
  /// Whether what is learnt is the difference to the start, not the product of A and B.
  bool is_relative() const { return init == LoraInit::kPissa || init == LoraInit::kOlora; }
};

LoraOptions parse_lora(const OptionReader& reader);
/// Keys of the run's section with their values as YAML.
std::vector<std::pair<std::string, std::string>> lora_keys(const LoraOptions& options);
/// Keys of PEFT's LoraConfig, and of what derives from it, that are written as null.
inline constexpr const char* kUnusedLoraKeys[] = {"alora_invocation_tokens",
                                                  "arrow_config",
                                                  "corda_config",
                                                  "eva_config",
                                                  "exclude_modules",
                                                  "kasa_config",
                                                  "layer_replication",
                                                  "layers_pattern",
                                                  "layers_to_transform",
                                                  "lora_ga_config",
                                                  "megatron_config",
                                                  "modules_to_save",
                                                  "monteclora_config",
                                                  "target_parameters",
                                                  "trainable_token_indices",
                                                  "use_bdlora",
                                                  "velora_config"};
/// The exact key set that PEFT 0.21.2 writes. Relative options come out as the plain LoRA of twice
/// the rank that holds the same change.
io::Json lora_peft_config(const LoraOptions& options, const std::vector<std::string>& targets,
                          const std::string& base_model);

}  // namespace shardtune::adapters
