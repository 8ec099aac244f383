// The vector loops of gemm_int8, and its inner form with the tile given; private to kernels/ and
// its tests.
#pragma once

#include "kernels/gemm_int8.h"
#include "kernels/gemm_int8_tiles.h"

namespace shardtune::kernels::int8 {

/// Codes of one row x [count] * factors; zeros up to `padded`.
struct RowCodes {
  float scale = 0.0f;
  int32_t sum = 0;
};
RowCodes quantize_row(const TensorView& x, int64_t row, const float* factors, int64_t padded,
                      int8_t* codes);
/// Largest |x * factors|; a NaN counts as more than infinity.
float row_absmax(const float* x, const float* factors, int64_t count);
/// codes = q + 128, q = round((x * column_factors) * row_factor).
void weight_codes(const float* x, const float* column_factors, float row_factor, int64_t count,
                  uint8_t* codes);
/// out [64][4] = four rows of 64 codes, interleaved.
void interleave_codes(const uint8_t* const rows[4], uint8_t* out);
/// c (+)= (sums - 128 * row_sum) * row_scale * scales, one row of `count` (at most 64) at `c`.
struct Finish {
  const int32_t* sums = nullptr;
  int32_t row_sum = 0;
  float row_scale = 0.0f;
  const float* scales = nullptr;
  int64_t count = 0;
  Accumulate accumulate = Accumulate::kNo;
};
void finish_row(const Finish& finish, const TensorView& c, int64_t offset);

/// The tile without such an instruction: 16-bit products.
void portable_tile(const Tile& tile);

/// gemm_int8 by this tile.
void gemm(const Int8Rows& a, const Int8Weight& weight, Transpose transpose,
          const TensorView& scales, const TensorView& c, Accumulate accumulate, TileFunction tile);

}  // namespace shardtune::kernels::int8
