// LoRA: y = W x + scale * B (A dropout(x)), scale = alpha / r, or alpha / sqrt(r) with rslora.
// A starts U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform with a = sqrt 5) or N(0, 1/r^2)
// ("gaussian"), B at zero, so training starts at the base model.
// Source  Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, rsLoRA, arXiv:2312.03732
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "adapters/adapter.h"
#include "adapters/target_modules.h"

namespace shardtune::adapters {

enum class LoraInit { kKaiming, kGaussian };

struct LoraOptions {
  int64_t lora_rank = 8;
  double lora_alpha = 16.0;
  double lora_dropout = 0.0;
  bool use_rslora = false;
  LoraInit init = LoraInit::kKaiming;
  TargetModules targets;

  double scale() const;
};

/// Factories of the registry.
std::unique_ptr<AdapterOptions> lora_from_yaml(const io::YamlNode& section);
std::unique_ptr<AdapterOptions> lora_from_peft(const io::Json& adapter_config,
                                               const std::string& name);

}  // namespace shardtune::adapters
