// Block decoders of GGUF's quantised types, private to io/: whole blocks of little-endian bytes to
// float32, each value rounded as the gguf package rounds it. Half floats are scales; nibbles, where
// not said otherwise, hold the first half of a block low and the second half high.
#pragma once

#include <cstddef>
#include <span>

#include "io/float_decode.h"

namespace shardtune::io {

inline float half_at(const std::byte* from) { return decode_half(load_value<uint16_t>(from)); }

// Blocks of 32: d (and m) F16, then codes.
void decode_q4_0(const std::byte* from, std::span<float> out);
void decode_q4_1(const std::byte* from, std::span<float> out);
void decode_q5_0(const std::byte* from, std::span<float> out);
void decode_q5_1(const std::byte* from, std::span<float> out);
void decode_q8_0(const std::byte* from, std::span<float> out);
void decode_iq4_nl(const std::byte* from, std::span<float> out);

// Super-blocks of 256 values, with a small integer scale for every 16 or 32 of them.
void decode_q2_k(const std::byte* from, std::span<float> out);
void decode_q3_k(const std::byte* from, std::span<float> out);
void decode_q4_k(const std::byte* from, std::span<float> out);
void decode_q5_k(const std::byte* from, std::span<float> out);
void decode_q6_k(const std::byte* from, std::span<float> out);

}  // namespace shardtune::io
