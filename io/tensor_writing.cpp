#include "io/tensor_writing.h"

#include "core/error.h"

namespace shardtune::io {

void write_tensor(FileWriter& file, const TensorToWrite& tensor, int64_t num_bytes) {
  const int64_t before = file.bytes_written();
  tensor.write([&](std::span<const std::byte> bytes) {
    if (file.bytes_written() - before + static_cast<int64_t>(bytes.size()) > num_bytes)
      throw ArgumentError(tensor.name + ": more than its " + std::to_string(num_bytes) +
                          " bytes were handed to the writer");
    file.write(bytes);
  });
  if (file.bytes_written() - before != num_bytes)
    throw ArgumentError(tensor.name + ": expected " + std::to_string(num_bytes) +
                        " bytes from its writer, found " +
                        std::to_string(file.bytes_written() - before));
}

}  // namespace shardtune::io
