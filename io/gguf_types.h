// Tensor types of GGUF: layout of every known one, decoders for those we compute with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace shardtune::io {

struct GgufType {
  uint32_t id;
  std::string_view name;
  int64_t block_size;   // elements of a block
  int64_t block_bytes;  // bytes of a block
  /// Decodes whole blocks: out.size() / block_size of them. nullptr where there is no decoder yet.
  void (*decode)(const std::byte* from, std::span<float> out);
};

/// nullptr for an unknown id or name.
const GgufType* find_gguf_type(uint32_t id);
const GgufType* find_gguf_type(std::string_view name);
/// "F32, F16, ...", the types with a decoder, for messages.
std::string decodable_gguf_types();

}  // namespace shardtune::io
