// Float32 to IEEE binary16 bits, written so that the compiler makes vector code of loops over it.
#pragma once

#include <bit>
#include <cstdint>

namespace shardtune::io {

/// Rounded to nearest even, subnormal halves included; from 65520 on infinity; a NaN stays one.
/// Needs gradual underflow (FTZ/DAZ off).
inline uint16_t encode_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // The step of subnormal halves, 2^-24, is that of floats from 0.5 on: the sum rounds to it.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  const uint32_t small = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f);
  const uint32_t normal =
      ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (uint32_t{112} << 10);
  const uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? small : normal;
  const uint32_t half = magnitude >= 0x477ff000u ? large : finite;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

}  // namespace shardtune::io
