// Types with blocks of 32 values. One product (and one sum) a value, each rounded once.
#include <array>

#include "io/gguf_decode.h"

namespace shardtune::io {

namespace {
constexpr size_t kBlock = 32;

template <size_t kBytes>
std::array<uint8_t, kBytes> load_bytes(const std::byte* from) {
  std::array<uint8_t, kBytes> bytes;
  std::memcpy(bytes.data(), from, kBytes);
  return bytes;
}

// 16 bytes of codes to 32: low nibbles are elements 0..15, high ones 16..31.
std::array<uint8_t, kBlock> nibbles(const std::byte* from) {
  const auto packed = load_bytes<kBlock / 2>(from);
  std::array<uint8_t, kBlock> codes;
  for (size_t j = 0; j < packed.size(); ++j) {
    codes[j] = packed[j] & 15u;
    codes[j + packed.size()] = packed[j] >> 4;
  }
  return codes;
}

// The same with a fifth bit: bit i of the 32-bit word before them belongs to element i.
std::array<uint8_t, kBlock> five_bit_codes(const std::byte* from) {
  const auto high = load_value<uint32_t>(from);
  std::array<uint8_t, kBlock> codes = nibbles(from + 4);
  for (size_t j = 0; j < kBlock; ++j)
    codes[j] = static_cast<uint8_t>(codes[j] | ((high >> j) & 1u) << 4);
  return codes;
}

// x = d * (q - zero)
void scale(const std::array<uint8_t, kBlock>& codes, float d, int zero, float* out) {
  for (size_t j = 0; j < kBlock; ++j)
    out[j] = d * static_cast<float>(codes[j] - zero);
}

// x = d * q + m
void scale_and_shift(const std::array<uint8_t, kBlock>& codes, float d, float m, float* out) {
  for (size_t j = 0; j < kBlock; ++j)
    out[j] = d * static_cast<float>(codes[j]) + m;
}
}  // namespace

void decode_q4_0(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kBlock, from += 18)
    scale(nibbles(from + 2), half_at(from), 8, &out[i]);
}

void decode_q4_1(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kBlock, from += 20)
    scale_and_shift(nibbles(from + 4), half_at(from), half_at(from + 2), &out[i]);
}

void decode_q5_0(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kBlock, from += 22)
    scale(five_bit_codes(from + 2), half_at(from), 16, &out[i]);
}

void decode_q5_1(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kBlock, from += 24)
    scale_and_shift(five_bit_codes(from + 4), half_at(from), half_at(from + 2), &out[i]);
}

void decode_q8_0(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kBlock, from += 34) {
    const float d = half_at(from);
    for (size_t j = 0; j < kBlock; ++j)
      out[i + j] = d * static_cast<float>(load_value<int8_t>(from + 2 + j));
  }
}

void decode_iq4_nl(const std::byte* from, std::span<float> out) {
  constexpr std::array<int8_t, 16> kValues = {-127, -104, -83, -65, -49, -35, -22, -10,
                                              1,    13,   25,  38,  53,  69,  89,  113};
  for (size_t i = 0; i < out.size(); i += kBlock, from += 18) {
    const float d = half_at(from);
    const auto codes = nibbles(from + 2);
    for (size_t j = 0; j < kBlock; ++j)
      out[i + j] = d * static_cast<float>(kValues[codes[j]]);
  }
}

}  // namespace shardtune::io
