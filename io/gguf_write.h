// Writing GGUF version 3, as the gguf package lays files out: metadata in the order given, tensors
// in the order given, everything aligned to 32 bytes with zeros between.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_writing.h"

namespace shardtune::io {

/// A metadata pair with its type and value as they stand in a file.
struct GgufPair {
  std::string key;
  std::string encoded;
};
GgufPair gguf_uint32(std::string key, uint32_t value);
GgufPair gguf_float32(std::string key, float value);
GgufPair gguf_bool(std::string key, bool value);
GgufPair gguf_string(std::string key, std::string_view value);
GgufPair gguf_strings(std::string key, std::span<const std::string> values);
GgufPair gguf_int32s(std::string key, std::span<const int32_t> values);
GgufPair gguf_float32s(std::string key, std::span<const float> values);

/// Shapes are row-major; dtype is a GGUF type, whose blocks divide a row. Durable when it returns.
/// Errors  ArgumentError: a name of more than 64 bytes, given twice or not UTF-8, an unknown type,
///         rows that are no whole blocks, other bytes than the shape says; WriteError
void write_gguf(const fs::path& path, std::span<const GgufPair> metadata,
                std::span<const TensorToWrite> tensors);

}  // namespace shardtune::io
