// LoRA's options to and from configuration files: our YAML section and PEFT's adapter_config.json.
#pragma once

#include <string>
#include <vector>

#include "adapters/lora.h"

namespace shardtune::adapters {

/// Reads lora_rank, lora_alpha, lora_dropout, use_rslora, init_lora_weights, target_modules.
/// Problems go to the section's error list.
LoraOptions parse_lora_yaml(const io::YamlNode& section);
/// Errors  DataError: keys missing or of the wrong type; UnsupportedError: an option whose effect
/// we
///         do not have (use_dora, rank_pattern, modules_to_save, ...), named
LoraOptions parse_lora_peft(const io::Json& config, const std::string& name);

/// The exact key set that PEFT 0.21.2 writes.
io::Json lora_peft_config(const LoraOptions& options, const std::vector<std::string>& targets,
                          const std::string& base_model);
/// Leaf names when they say the same as the whole paths, else the paths.
std::vector<std::string> compact_targets(const std::vector<std::string>& paths,
                                         models::Model& model);

}  // namespace shardtune::adapters
