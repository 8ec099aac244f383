// Named tensors of a model file, whatever its format: safetensors and GGUF implement it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"

namespace shardtune::io {

struct TensorInfo {
  std::string name;            // as in the file
  std::string dtype;           // format's own word: "BF16", "F32", "Q4_1", ...
  std::vector<int64_t> shape;  // row-major, last index fastest (GGUF dims reversed)
  int64_t num_bytes = 0;
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  /// nullptr when absent.
  virtual const TensorInfo* find(std::string_view name) const = 0;
  /// Raw bytes of the tensor in the mapped file, valid until the source dies.
  virtual std::span<const std::byte> bytes(const TensorInfo& tensor) const = 0;
  /// Elements [begin, end) in row-major order as fp32; block formats need block-aligned bounds.
  /// UnsupportedError: a dtype without a decoder here, naming tensor and dtype.
  virtual void read_float32(const TensorInfo& tensor, int64_t begin, int64_t end,
                            float* out) const = 0;
  /// What read_float32 throws for such a dtype, without reading.
  virtual void check_readable(const TensorInfo& tensor) const = 0;
  /// Drops the tensor's mapped pages after use.
  virtual void drop(const TensorInfo& tensor) const noexcept = 0;
  /// File and tensor for messages: "model.safetensors: model.norm.weight".
  virtual std::string describe(const TensorInfo& tensor) const = 0;
};

}  // namespace shardtune::io
