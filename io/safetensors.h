// safetensors files: mapped reading with every check of the format, sharded models through their
// index, and writing. Tensors keep the dtype of the file.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/file.h"
#include "io/tensor_source.h"

namespace shardtune::io {

/// One .safetensors file or a folder with model.safetensors[.index.json].
/// Errors  DataError: anything the reference reader rejects, duplicate keys, names with separators
///         MissingInputError: no file
std::unique_ptr<TensorSource> open_safetensors(const fs::path& file_or_folder);

struct TensorToWrite {
  std::string name;
  std::string dtype;  // "F32", "BF16", "F16", "I8", "U8", "I64"
  std::vector<int64_t> shape;
  /// Appends exactly numel * size bytes to the sink, called once, in file order.
  std::function<void(const std::function<void(std::span<const std::byte>)>& sink)> write;
};

/// Writes a file as the reference writer does: header padded to 8, tensors by dtype size then name,
/// __metadata__ {"format":"pt"} plus `metadata`. Durable when it returns.
void write_safetensors(const fs::path& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace shardtune::io
