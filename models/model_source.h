// A model on disk, under Hugging Face's names and layout whatever the format: a folder with
// config.json and safetensors, or one GGUF file (names mapped, q/k permutation undone); weights of
// linears are [out,in] whatever the file holds.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/tensor_source.h"
#include "models/model_config.h"

namespace shardtune::models {

class ModelSource {
 public:
  virtual ~ModelSource() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const std::string& path() const = 0;
  virtual bool has(const std::string& name) const = 0;
  /// Shape under `name`; DataError when absent.
  virtual std::vector<int64_t> shape(const std::string& name) const = 0;
  /// Bytes of the tensor in the file; DataError when absent.
  virtual int64_t file_bytes(const std::string& name) const = 0;
  /// The file's word for the type of the tensor: "Q4_K", "BF16", ...; DataError when absent.
  virtual std::string stored_type(const std::string& name) const = 0;
  /// UnsupportedError naming file, tensor and type when read_rows() has no decoder for it.
  virtual void check_readable(const std::string& name) const = 0;
  /// Rows [begin, end) of a matrix as the file holds them, whole blocks. llama's q and k rows of
  /// GGUF are brought into Hugging Face's order; what is inside a row stays.
  virtual void read_stored_rows(const std::string& name, int64_t begin, int64_t end,
                                std::byte* out) const = 0;
  /// Rows [begin, end) of a matrix (or elements of a vector) as fp32.
  virtual void read_rows(const std::string& name, int64_t begin, int64_t end, float* out) const = 0;
  /// Drops the tensor's mapped pages.
  virtual void drop(const std::string& name) const noexcept = 0;
  /// SHA-256 over names, dtypes, shapes and bytes of the tensors that make up the base.
  virtual std::string content_hash() const = 0;
  /// Files to carry into an export when the model is a folder; "" for a GGUF file.
  virtual std::string folder() const = 0;
};

/// Errors  MissingInputError: no such path, or neither config.json nor .gguf; DataError: damaged
std::unique_ptr<ModelSource> open_model_source(const std::string& model_name_or_path);

}  // namespace shardtune::models
