// Several LoRA adapters of one base written as one (adapters/combine.h); no model is loaded.
#pragma once

#include <string>
#include <vector>

#include "adapters/combine.h"
#include "export/output_folder.h"
#include "export/provenance.h"

namespace shardtune::exporting {

/// Writes the combined adapter with the provenance of the first that has one.
/// Errors  those of combine_adapters and write_peft_adapter; DataError: adapters trained on another
///         base than `model`
io::Json export_combined(const std::vector<std::string>& folders,
                         const adapters::Combination& combination, const std::string& model,
                         const std::string& model_sha256, const OutputFolder& output);

}  // namespace shardtune::exporting
