// The header of a safetensors file, parsed and checked; and the dtypes of the format.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tensor_source.h"

namespace shardtune::io {

struct SafetensorsEntry {
  TensorInfo info;
  int64_t offset;  // first byte in the file
};

/// Entries in the order of their bytes. DataError "name: byte N: ..." for everything the reference
/// reader rejects, and for duplicate keys, which it does not notice.
std::vector<SafetensorsEntry> parse_safetensors(const std::string& name,
                                                std::span<const std::byte> bytes);

/// Bits of one element; 0 for an unknown dtype.
int64_t safetensors_bits(std::string_view dtype);

}  // namespace shardtune::io
