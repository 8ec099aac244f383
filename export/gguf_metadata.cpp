#include "export/gguf_metadata.h"

#include <algorithm>

#include "core/log.h"
#include "data/gguf_tokenizer.h"
#include "models/gguf_names.h"

namespace shardtune::exporting {
namespace {

/// llama.cpp's LLAMA_FTYPE of a file whose matrices have this type.
uint32_t file_type(const std::string& type) {
  return type == "F32" ? 0 : type == "F16" ? 1 : type == "Q8_0" ? 7 : 32;
}

/// Keys that say how the source was stored, not what the model is.
bool is_of_storage(std::string_view key) {
  return key == "general.file_type" || key == "general.quantization_version" ||
         key == "general.alignment" || key.starts_with("split.") || key.starts_with("quantize.");
}

int64_t context_length(const models::ModelConfig& config) {
  int64_t length = config.max_position_embeddings;
  for (const int64_t window : config.layer_windows) {
    if (window > 0)
      length = std::min(length, window);
  }
  if (length < config.max_position_embeddings)
    log_warning(
        "export --to gguf: llama.cpp applies no sliding window to this family. The file "
        "gives " +
        std::to_string(length) + " tokens, the window, as its context instead of " +
        std::to_string(config.max_position_embeddings) + ": up to there the model is the same.");
  return length;
}

}  // namespace

std::vector<io::GgufPair> gguf_metadata(const ExportRequest& request, const std::string& type) {
  const models::ModelConfig& config = request.source.config();
  std::vector<io::GgufPair> pairs;
  if (request.source.folder().empty()) {
    for (io::GgufPair& pair : io::open_gguf(request.source.path())->pairs()) {
      const bool stays =
          type == "keep" && pair.key != "general.alignment" && !pair.key.starts_with("split.");
      if (stays || !is_of_storage(pair.key))
        pairs.push_back(std::move(pair));
    }
  } else {
    models::ModelConfig written = config;
    written.max_position_embeddings = context_length(config);
    pairs = models::gguf_keys(written);
    if (request.tokenizer == nullptr)
      throw UnsupportedError(
          "export --to gguf: expected a model whose tokenizer can be read, as a GGUF file has to "
          "hold it, found none (the warning above says why). Give the model's folder with its "
          "tokenizer, or use --to hf.");
    for (io::GgufPair& pair : data::gguf_tokenizer(*request.tokenizer, config.vocab_size))
      pairs.push_back(std::move(pair));
  }
  if (type == "keep")
    return pairs;
  pairs.push_back(io::gguf_uint32("general.file_type", file_type(type)));
  if (type == "Q8_0")
    pairs.push_back(io::gguf_uint32("general.quantization_version", 2));
  return pairs;
}

}  // namespace shardtune::exporting
