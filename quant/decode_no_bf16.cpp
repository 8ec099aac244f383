// Stands in for decode_avx512bf16.cpp where the build is for another architecture.
#include "quant/decode_machine.h"

namespace shardtune::quant {

const DecodeFunctions* machine_decoders() { return nullptr; }

}  // namespace shardtune::quant
