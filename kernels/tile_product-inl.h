// Products of small f32 tiles on one thread: c [m,n] (+)= a [m,k] b [k,n]. Included once per
// target, as simd-inl.h is.
#if defined(SHARDTUNE_KERNELS_TILE_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHARDTUNE_KERNELS_TILE_PRODUCT_INL_H_
#undef SHARDTUNE_KERNELS_TILE_PRODUCT_INL_H_
#else
#define SHARDTUNE_KERNELS_TILE_PRODUCT_INL_H_
#endif

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

// Element (i, p) of a at i * row_stride + p * column_stride, so a transposed tile needs no copy.
struct TileA {
  const float* data;
  int64_t row_stride, column_stride;
};
struct TileB {
  const float* data;
  int64_t row_stride;
};
struct TileC {
  float* data;
  int64_t row_stride;
};
struct TileShape {
  int64_t m, n, k;  // n a multiple of 32
};

// Rows of c kept in registers, two vectors each: 12 accumulators of 16 registers, 24 of 32.
#if HWY_TARGET <= HWY_AVX3
inline constexpr int kTileRows = 12;
#else
inline constexpr int kTileRows = 6;
#endif

template <int kRows>
HWY_INLINE void tile_rows(TileA a, TileB b, TileC c, int64_t k, Accumulate accumulate) {
  const Df df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  Vf left[kRows], right[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const float* const row = c.data + i * c.row_stride;
    left[i] = accumulate == Accumulate::kYes ? hn::LoadU(df, row) : hn::Zero(df);
    right[i] = accumulate == Accumulate::kYes ? hn::LoadU(df, row + lanes) : hn::Zero(df);
  }
  for (int64_t p = 0; p < k; ++p) {
    const float* const b_row = b.data + p * b.row_stride;
    const float* const a_column = a.data + p * a.column_stride;
    const Vf b0 = hn::LoadU(df, b_row), b1 = hn::LoadU(df, b_row + lanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vf value = hn::Set(df, a_column[i * a.row_stride]);
      left[i] = hn::MulAdd(value, b0, left[i]);
      right[i] = hn::MulAdd(value, b1, right[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    hn::StoreU(left[i], df, c.data + i * c.row_stride);
    hn::StoreU(right[i], df, c.data + i * c.row_stride + lanes);
  }
}

// The rows left over by whole groups, fewer than kTileRows.
template <int kRows>
HWY_INLINE void tile_rest(int64_t rows, TileA a, TileB b, TileC c, int64_t k,
                          Accumulate accumulate) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      return tile_rows<kRows>(a, b, c, k, accumulate);
    tile_rest<kRows - 1>(rows, a, b, c, k, accumulate);
  }
}

HWY_INLINE void tile_product(TileShape shape, TileA a, TileB b, TileC c, Accumulate accumulate) {
  const auto step = static_cast<int64_t>(2 * hn::Lanes(Df()));
  for (int64_t j = 0; j < shape.n; j += step) {
    const TileB b_panel{b.data + j, b.row_stride};
    int64_t i = 0;
    for (; i + kTileRows <= shape.m; i += kTileRows)
      tile_rows<kTileRows>({a.data + i * a.row_stride, a.row_stride, a.column_stride}, b_panel,
                           {c.data + i * c.row_stride + j, c.row_stride}, shape.k, accumulate);
    tile_rest<kTileRows - 1>(shape.m - i,
                             {a.data + i * a.row_stride, a.row_stride, a.column_stride}, b_panel,
                             {c.data + i * c.row_stride + j, c.row_stride}, shape.k, accumulate);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#endif
