// safetensors files: mapped reading with every check of the format, sharded models through their
// index, and writing. Tensors keep the dtype of the file.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/file.h"
#include "io/tensor_source.h"
#include "io/tensor_writing.h"

namespace shardtune::io {

/// One .safetensors file or a folder with model.safetensors[.index.json].
/// Errors  DataError: anything the reference reader rejects, duplicate keys, names with separators
///         MissingInputError: no file
std::unique_ptr<TensorSource> open_safetensors(const fs::path& file_or_folder);

/// Writes a file as the reference writer does: header padded to 8, tensors by dtype size then name,
/// __metadata__ {"format":"pt"} plus `metadata`. Durable when it returns.
void write_safetensors(const fs::path& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace shardtune::io
