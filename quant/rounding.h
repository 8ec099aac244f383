// Scalar helpers of the codecs, private to quant/, written so that loops over them vectorise.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>

namespace shardtune::quant {

/// The bits of BFloat16(value) for a value that is not NaN: without that test no branch is left.
inline uint16_t finite_to_bfloat16_bits(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/// Index of the first NaN or infinity, counted from `base`.
inline std::optional<int64_t> first_non_finite(std::span<const float> values, int64_t base) {
  const auto found =
      std::find_if_not(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
  if (found == values.end())
    return std::nullopt;
  return base + (found - values.begin());
}

}  // namespace shardtune::quant
