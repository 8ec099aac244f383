// A tensor on its way into a file, whatever the format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "io/file.h"

namespace shardtune::io {

struct TensorToWrite {
  std::string name;
  std::string dtype;  // the format's word: "F32", "BF16", "Q8_0", ...
  std::vector<int64_t> shape;
  /// Appends exactly the tensor's bytes to the sink, called once, in file order.
  std::function<void(const std::function<void(std::span<const std::byte>)>& sink)> write;
};

/// ArgumentError unless the tensor hands over exactly num_bytes.
void write_tensor(FileWriter& file, const TensorToWrite& tensor, int64_t num_bytes);

}  // namespace shardtune::io
