// Compiled with AVX512-VNNI enabled: includes nothing but plain declarations and intrinsics, so
// that no function of a shared header is built for instructions that other machines lack.
// 6 rows x 4 vectors of sums stay in registers: 24 products for 4 loads and 6 broadcasts.
#include <immintrin.h>

#include <cstring>

#include "kernels/gemm_int8_tiles.h"

namespace shardtune::kernels::int8 {

namespace {
inline __m512i broadcast_quad(const int8_t* codes) {
  int quad;
  std::memcpy(&quad, codes, sizeof quad);
  return _mm512_set1_epi32(quad);
}

// The sums of one row. Names and the instruction in assembly: GCC 12 keeps an array, or anything
// whose address is taken, in memory, and copies each sum around the intrinsic.
struct RowSums {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;

  void add(const uint8_t* weight, __m512i row) {
    const auto product = [&](__m512i& sum, int64_t vector) {
      const __m512i columns = _mm512_loadu_si512(weight + 64 * vector);
      asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(columns), "v"(row));
    };
    product(a, 0);
    product(b, 1);
    product(c, 2);
    product(d, 3);
  }
  void store(int32_t* sums) const {
    _mm512_storeu_si512(sums, a);
    _mm512_storeu_si512(sums + 16, b);
    _mm512_storeu_si512(sums + 32, c);
    _mm512_storeu_si512(sums + 48, d);
  }
};

template <int kRows>
void multiply(const Tile& tile) {
  const uint8_t* weight = tile.weight;
  const int8_t* codes = tile.codes;
  const int64_t stride = tile.row_stride;
  RowSums r0, r1, r2, r3, r4, r5;
  for (int64_t quad = 0; quad < tile.quads; ++quad, weight += 4 * kTileColumns, codes += 4) {
    r0.add(weight, broadcast_quad(codes));
    if constexpr (kRows > 1)
      r1.add(weight, broadcast_quad(codes + stride));
    if constexpr (kRows > 2)
      r2.add(weight, broadcast_quad(codes + 2 * stride));
    if constexpr (kRows > 3)
      r3.add(weight, broadcast_quad(codes + 3 * stride));
    if constexpr (kRows > 4)
      r4.add(weight, broadcast_quad(codes + 4 * stride));
    if constexpr (kRows > 5)
      r5.add(weight, broadcast_quad(codes + 5 * stride));
  }
  int32_t* const sums = tile.sums;
  r0.store(sums);
  if constexpr (kRows > 1)
    r1.store(sums + 1 * kTileColumns);
  if constexpr (kRows > 2)
    r2.store(sums + 2 * kTileColumns);
  if constexpr (kRows > 3)
    r3.store(sums + 3 * kTileColumns);
  if constexpr (kRows > 4)
    r4.store(sums + 4 * kTileColumns);
  if constexpr (kRows > 5)
    r5.store(sums + 5 * kTileColumns);
}

void multiply_tile(const Tile& tile) {
  static constexpr TileFunction kByRows[kTileRows] = {&multiply<1>, &multiply<2>, &multiply<3>,
                                                      &multiply<4>, &multiply<5>, &multiply<6>};
  kByRows[tile.rows - 1](tile);
}
}  // namespace

TileFunction machine_tile() { return &multiply_tile; }

}  // namespace shardtune::kernels::int8
