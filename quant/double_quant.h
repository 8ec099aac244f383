// Double quantisation: the absmax of 4-bit blocks stored in 8 bits. One fp32 offset (their mean) is
// taken off first; what is left is quantised in blocks of 256 to the dynamic 8-bit map of
// bitsandbytes. Our codes are the nearest entries; bitsandbytes' are off by one for some ties.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace shardtune::quant {

/// Values of absmax that share one nested absmax.
inline constexpr int64_t kNestedBlockSize = 256;

enum class DynamicMapKind { kSigned, kUnsigned };

/// The dynamic 8-bit map: 256 fp32 values in ascending order.
/// Exact   the bytes of bitsandbytes' create_dynamic_map
/// Source  Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861
const std::array<float, 256>& dynamic_map(DynamicMapKind kind);

/// The mean of absmax: an fp64 sum in index order, divided and rounded to fp32 once.
float absmax_offset(std::span<const float> absmax);

/// Quantises absmax - offset (fp32) to the signed map.
/// Shapes  absmax [n]; codes [n] u8; nested_absmax [ceil(n/256)] f32
/// Exact   codes[i] is the index of the entry nearest to (absmax[i] - offset) / nested_absmax in
///         exact arithmetic, a tie going to the lower one; any number of threads
/// Errors  ArgumentError: sizes that do not fit
void quantize_absmax(std::span<const float> absmax, float offset, std::span<uint8_t> codes,
                     std::span<float> nested_absmax);

/// One absmax back: map[code] * nested_absmax, then + offset, two roundings.
inline float dequantize_absmax(uint8_t code, float nested_absmax, float offset,
                               const std::array<float, 256>& signed_map) {
  return signed_map[code] * nested_absmax + offset;
}

}  // namespace shardtune::quant
