// Stands in for gemm_int8_avx512vnni.cpp where the build is for another architecture.
#include "kernels/gemm_int8_tiles.h"

namespace shardtune::kernels::int8 {

TileFunction machine_tile() { return nullptr; }

}  // namespace shardtune::kernels::int8
