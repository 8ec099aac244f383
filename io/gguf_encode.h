// Float32 rows to the GGUF types that we write: F32, F16, BF16 and Q8_0, with the bytes of the gguf
// package.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace shardtune::io {

/// Encodes whole blocks; out has block_bytes for each block_size values. Values are finite.
/// Q8_0: d = max |x| / 127, codes x / d rounded half away from zero by the unrounded d, d as F16.
/// Exact   one product by 1 / d and one rounding a value, as ggml's reference
/// Errors  ArgumentError: another type, sizes that do not fit
void encode_gguf(std::string_view type, std::span<const float> values, std::span<std::byte> out);

}  // namespace shardtune::io
