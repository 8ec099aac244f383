// Arrays of 16-bit floats to float32, written so that the compiler makes vector code of them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace shardtune::io {

/// IEEE binary16 bits as float32; NaN payloads stay. Needs gradual underflow (FTZ/DAZ off).
inline float decode_half(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  // The exponent bias differs by 112; the product also makes normal numbers of subnormal halves.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t bits = (half & 0x7c00u) == 0x7c00u ? special : finite;
  return std::bit_cast<float>(bits | (static_cast<uint32_t>(half & 0x8000u) << 16));
}

/// A little-endian value at any alignment.
template <typename T>
T load_value(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

/// Decodes out.size() values; `from` needs no alignment.
inline void decode_f16(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = decode_half(load_value<uint16_t>(from + 2 * i));
}
inline void decode_bf16(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const auto bits = static_cast<uint32_t>(load_value<uint16_t>(from + 2 * i)) << 16;
    out[i] = std::bit_cast<float>(bits);
  }
}
/// Converts any arithmetic type by value.
template <typename T>
void decode_as(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(load_value<T>(from + sizeof(T) * i));
}

}  // namespace shardtune::io
