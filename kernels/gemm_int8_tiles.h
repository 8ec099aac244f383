// The tile of gemm_int8: up to 6 rows of codes by 64 columns of packed weight codes. Plain pointers
// and nothing of other headers, for gemm_int8_avx512vnni.cpp is compiled for more than the
// baseline.
#pragma once

#include <cstdint>

namespace shardtune::kernels::int8 {

inline constexpr int64_t kTileRows = 6;
inline constexpr int64_t kTileColumns = 64;

/// sums [rows, 64] = codes [rows, 4 * quads] * weight, which is packed as [quads][64][4] and holds
/// q + 128 (unsigned, as the instruction wants it); the caller takes 128 * sum of the codes away.
struct Tile {
  const int8_t* codes = nullptr;
  int64_t row_stride = 0;
  int64_t rows = 0;  // 1 to kTileRows
  const uint8_t* weight = nullptr;
  int64_t quads = 0;
  int32_t* sums = nullptr;
};
using TileFunction = void (*)(const Tile& tile);

/// For AVX512-VNNI; null where this build has none. Call only when has_fast_int8().
TileFunction machine_tile();

}  // namespace shardtune::kernels::int8
