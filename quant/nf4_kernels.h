// The vector loops of the NF4 codec, private to quant/.
#pragma once

#include <cstdint>

#include "quant/nf4.h"

namespace shardtune::quant {

/// Whole blocks, one after the other.
struct Nf4Blocks {
  const float* x;
  int64_t num_blocks;
  int64_t block_size;
};

/// Quantises whole blocks. The absmax of a block with a value that is not finite is NaN or infinity
/// (its codes are then meaningless).
void nf4_quantize_blocks(const Nf4Blocks& blocks, const FourBitCodebook& codebook, uint8_t* codes,
                         float* absmax);

/// Quantises a last block of count values, fewer than its block_size. Returns its absmax.
float nf4_quantize_short_block(const float* x, int64_t count, const FourBitCodebook& codebook,
                               uint8_t* codes);

}  // namespace shardtune::quant
