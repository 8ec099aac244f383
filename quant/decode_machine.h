// Decoding to bf16 with instructions that not every machine has, as plain function pointers:
// includes nothing of other headers, so that a file compiled for AVX-512 leaves no inline function
// for the linker to pick on other machines.
#pragma once

#include <cstdint>

namespace shardtune::quant {

inline constexpr float kLeastMachineFactor = 1e-36f;
inline constexpr int64_t kMachineBlock = 64;

/// The bytes are those of the plain forms for factors (absmax, scale) of 0 or above
/// kLeastMachineFactor: these instructions take denormal products for 0.
struct DecodeFunctions {
  /// Whole blocks of NF4, block_size a multiple of kMachineBlock; table: the 16 values.
  void (*nf4)(const uint8_t* codes, const float* absmax, int64_t num_blocks, int64_t block_size,
              const float* table, uint16_t* out);
  /// out = codes * scale.
  void (*int8)(const int8_t* codes, int64_t count, float scale, uint16_t* out);
};

/// For AVX512-BF16; null where this build has none. Call only when has_fast_bfloat16().
const DecodeFunctions* machine_decoders();

/// machine_decoders() where this machine has the instructions, else null.
const DecodeFunctions* decode_functions();

}  // namespace shardtune::quant
