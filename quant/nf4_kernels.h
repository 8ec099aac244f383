// The vector loops of the NF4 codec, private to quant/.
#pragma once

#include <cstdint>

namespace shardtune::quant {

/// Quantises one block of count values; a block is short when count < block_size. Returns its
/// absmax; NaN or infinity when a value is not finite (the codes are then meaningless).
float nf4_quantize_block(const float* x, int64_t count, int64_t block_size, uint8_t* codes);

}  // namespace shardtune::quant
