// NF4, the 4-bit NormalFloat of QLoRA, and FP4 (a sign, two exponent bits, one of mantissa) as one
// codec over plain memory: codes and absmax have the bytes of bitsandbytes 0.50.2. What one would
// guess wrong: blocks run over the flattened tensor, across rows, and bitsandbytes treats a last
// block that is short unlike a full one (see nf4_quantize).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/tensor.h"

namespace shardtune::quant {

inline constexpr int64_t kMinBlockSize = 32;
inline constexpr int64_t kMaxBlockSize = 4096;

/// Whether block_size is a power of two in [32, 4096].
bool is_block_size(int64_t block_size);
/// "32, 64, ..., 4096", for messages.
std::string block_sizes_text();

/// What the two formats differ in.
struct FourBitCodebook {
  std::array<float, 16> values;     // by code
  std::array<float, 15> midpoints;  // fp32 middles of neighbouring values in ascending order
  std::array<uint8_t, 16> codes;    // by the number of midpoints strictly below a value
};
/// Codes in ascending order of values; code 7 is 0.
const FourBitCodebook& nf4_codebook();
/// Codes 0 and 8 both stand for 0: bitsandbytes gives 8 to what lies just above it.
const FourBitCodebook& fp4_codebook();

/// Packs x to 4-bit codes and one absmax per block_size consecutive values. The code follows from
/// the number of midpoints strictly below v = clamp(x * (1 / absmax), -1, 1) with absmax at least
/// 1e-38; in a short last block v = x / absmax, and the stored absmax is at least 1e-38 too.
/// Returns the index of the first NaN or infinity of x; the outputs are then not to be used
/// Shapes  x [n]; codes [ceil(n/2)] u8; absmax [ceil(n/block_size)] f32
/// Dtypes  x f32 (f16 and bf16 widen without loss); computed in f32
/// Layout  value 2i in the high nibble; an odd n is padded with the code of 0
/// Exact   the bytes of bitsandbytes for any number of threads and any instruction set
/// Errors  ArgumentError: block_size not a power of two in [32, 4096], sizes that do not fit
/// Source  Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3
[[nodiscard]] std::optional<int64_t> nf4_quantize(std::span<const float> x, int64_t block_size,
                                                  std::span<uint8_t> codes, std::span<float> absmax,
                                                  const FourBitCodebook& codebook = nf4_codebook());

/// The absmax of each block: fp32 as it is, or in 8 bits (see quant/double_quant.h).
struct Nf4Absmax {
  const float* absmax = nullptr;  // when set, the others are unused
  const uint8_t* codes = nullptr;
  const float* nested_absmax = nullptr;
  float offset = 0.0f;
};

struct Nf4View {
  const uint8_t* codes = nullptr;
  Nf4Absmax absmax;
  int64_t block_size = 64;
  const FourBitCodebook* codebook = &nf4_codebook();
};

/// out = values [begin, begin + out.numel()) of the flattened tensor: values[code] * absmax in
/// fp32, rounded to out's dtype. Runs on the calling thread only. Dtypes  out f32 | bf16
void nf4_dequantize(const Nf4View& weight, int64_t begin, const TensorView& out);

}  // namespace shardtune::quant
