// Stands in for attention_avx512bf16.cpp where the build is for another architecture.
#include "kernels/attention_bf16_tiles.h"

namespace shardtune::kernels::bf16 {

const TileFunctions* machine_functions() { return nullptr; }

}  // namespace shardtune::kernels::bf16
