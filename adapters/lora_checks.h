// What LoRA's options ask of the linears and tables that they change.
#pragma once

#include "adapters/lora_options.h"
#include "adapters/target_modules.h"
#include "models/base_linear.h"
#include "models/vocabulary_table.h"

namespace shardtune::adapters {

/// ConfigError: LoftQ on a weight that is not quantised, or in other bits.
void check_loftq(const LoraOptions& options, const models::BaseLinear& linear);
/// ConfigError: groups of QA-LoRA that do not fit the inputs or the blocks of a kept weight.
void check_groups(const LoraOptions& options, const models::BaseLinear& linear);
/// UnsupportedError: options that embedding and head do not take; ConfigError: a rank too high.
void check_tables(const LoraOptions& options, const TargetTables& paths,
                  const models::VocabularyTable& head);

}  // namespace shardtune::adapters
