// The files around merged weights: config.json, generation_config.json, tokenizer.json,
// tokenizer_config.json and the chat template (DESIGN section 8.13).
#pragma once

#include <filesystem>

#include "export/exporter.h"

namespace shardtune::exporting {

/// From a folder model its own files are carried, with dtype set and the tokenizer class changed to
/// PreTrainedTokenizerFast: transformers 5 would rebuild the pipeline of GPT2Tokenizer and others
/// from the class, without its digit split. From GGUF they are built from the metadata.
/// Errors  DataError: a file of the model that is damaged
/// `quantization` becomes config.json's quantization_config, unless it is null.
void write_model_files(const ExportRequest& request, const std::filesystem::path& folder,
                       const io::Json& quantization = {});

}  // namespace shardtune::exporting
