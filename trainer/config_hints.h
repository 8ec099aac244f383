// Spellings of other trainers, recognised only to say which of our keys is meant.
#pragma once

#include <string_view>

#include "io/yaml_node.h"

namespace shardtune::trainer {

/// Asks `node` about every foreign key that belongs to `section` ("" = the top of the file, where
/// flat configurations put all of them).
void hint_foreign_keys(const io::YamlNode& node, std::string_view section);

/// DeepSpeed keys that would change nothing here: each one present is an error with the reason.
void refuse_zero_keys_without_effect(const io::YamlNode& zero_optimization);
void refuse_offload_keys_without_effect(const io::YamlNode& offload);
/// DeepSpeed's aio section, wherever it stands.
void refuse_aio(const io::YamlNode& section);

}  // namespace shardtune::trainer
