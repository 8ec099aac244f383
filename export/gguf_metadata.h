// The metadata of an exported GGUF file: a GGUF source's own, with the type of the tensors changed,
// or what llama.cpp wants to know of a Hugging Face folder.
#pragma once

#include <string>
#include <vector>

#include "export/exporter.h"
#include "io/gguf_write.h"

namespace shardtune::exporting {

/// `type` is that of the matrices: "F32", "F16", "BF16", "Q8_0". A model with a sliding window,
/// which llama.cpp would not apply, gets that window as its context: within it nothing differs.
/// Errors  UnsupportedError: a family, a rope scaling or a tokenizer that has no form in GGUF here
std::vector<io::GgufPair> gguf_metadata(const ExportRequest& request, const std::string& type);

}  // namespace shardtune::exporting
