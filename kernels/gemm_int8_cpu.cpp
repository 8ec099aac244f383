#include "kernels/gemm_int8_cpu.h"

#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemm_int8_cpu.cpp"
#include <hwy/foreach_target.h>
// foreach_target must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels::int8 {
namespace HWY_NAMESPACE {
using namespace shardtune::kernels::HWY_NAMESPACE;

// Integers order finite magnitudes as floats do, with infinity and NaN above them.
HWY_ATTR float row_absmax(Row x, const float* factors, int64_t count) {
  const Df df;
  const Di di;
  auto largest = hn::Zero(di);
  const Row by{const_cast<float*>(factors), nullptr};
  for_each_vector(static_cast<size_t>(count), [&](size_t i, size_t n) HWY_ATTR {
    const auto v = hn::Mul(load_n(x, i, n), load_n(by, i, n));
    largest = hn::Max(largest, hn::And(hn::BitCast(di, v), hn::Set(di, 0x7fffffff)));
  });
  return hn::GetLane(hn::BitCast(df, hn::MaxOfLanes(di, largest)));
}

HWY_ATTR RowCodes quantize_row(Row x, const float* factors, int64_t count, int8_t* codes) {
  const Df df;
  const Di di;
  const hn::Rebind<int8_t, Df> d8;
  const float absmax = row_absmax(x, factors, count);
  if (!(absmax <= std::numeric_limits<float>::max())) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  // Below this the reciprocal overflows; such a row is as good as zero.
  if (absmax < 128.0f * std::numeric_limits<float>::min()) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return {0.0f, 0};
  }
  const auto factor = hn::Set(df, 127.0f / absmax);
  const Row by{const_cast<float*>(factors), nullptr};
  auto sum = hn::Zero(di);
  for_each_vector(static_cast<size_t>(count), [&](size_t i, size_t n) HWY_ATTR {
    const auto v = hn::Mul(hn::Mul(load_n(x, i, n), load_n(by, i, n)), factor);
    const auto code = hn::NearestInt(v);
    sum = hn::Add(sum, code);
    if (n == hn::Lanes(df)) {
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i);
    } else {
      HWY_ALIGN int8_t buffer[hn::MaxLanes(Df())];
      hn::StoreU(hn::DemoteTo(d8, code), d8, buffer);
      std::memcpy(codes + i, buffer, n);
    }
  });
  return {absmax / 127.0f, hn::GetLane(hn::SumOfLanes(di, sum))};
}

HWY_ATTR RowCodes quantize_row_of(const TensorView& x, int64_t row, const float* factors,
                                  int8_t* codes) {
  return quantize_row(row_of(x) + row * x.dim(1), factors, x.dim(1), codes);
}

HWY_ATTR float absmax_of(const float* x, const float* factors, int64_t count) {
  return row_absmax(Row{const_cast<float*>(x), nullptr}, factors, count);
}

HWY_ATTR void weight_codes(const float* x, const float* column_factors, float row_factor,
                           int64_t count, uint8_t* codes) {
  const Df df;
  const Di di;
  const hn::Rebind<uint8_t, Df> d8;
  const auto factor = hn::Set(df, row_factor);
  const Row values{const_cast<float*>(x), nullptr};
  const Row by{const_cast<float*>(column_factors), nullptr};
  for_each_vector(static_cast<size_t>(count), [&](size_t i, size_t n) HWY_ATTR {
    const auto v = hn::Mul(hn::Mul(load_n(values, i, n), load_n(by, i, n)), factor);
    const auto code = hn::DemoteTo(d8, hn::Add(hn::NearestInt(v), hn::Set(di, 128)));
    if (n == hn::Lanes(df)) {
      hn::StoreU(code, d8, codes + i);
    } else {
      HWY_ALIGN uint8_t buffer[hn::MaxLanes(Df())];
      hn::StoreU(code, d8, buffer);
      std::memcpy(codes + i, buffer, n);
    }
  });
}

HWY_ATTR void interleave_codes(const uint8_t* const rows[4], uint8_t* out) {
  const hn::ScalableTag<uint8_t> d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d8));
  for (int64_t i = 0; i < kTileColumns; i += lanes) {
    hn::StoreInterleaved4(hn::LoadU(d8, rows[0] + i), hn::LoadU(d8, rows[1] + i),
                          hn::LoadU(d8, rows[2] + i), hn::LoadU(d8, rows[3] + i), d8, out + 4 * i);
  }
}

HWY_ATTR void finish_row(const Finish& finish, const TensorView& c, int64_t offset) {
  const Df df;
  const Di di;
  const Row out = row_of(c) + offset;
  const Row scales{const_cast<float*>(finish.scales), nullptr};
  const auto row_scale = hn::Set(df, finish.row_scale);
  const auto shift = hn::Set(di, 128 * finish.row_sum);
  for_each_vector(static_cast<size_t>(finish.count), [&](size_t i, size_t n) HWY_ATTR {
    // The tile has room for whole vectors.
    const auto sum = hn::ConvertTo(df, hn::Sub(hn::LoadU(di, finish.sums + i), shift));
    auto v = hn::Mul(hn::Mul(sum, row_scale), load_n(scales, i, n));
    if (finish.accumulate == Accumulate::kYes)
      v = hn::Add(load_n(out, i, n), v);
    store_n(v, out, i, n);
  });
}

#if HWY_ARCH_X86
// Codes of even and of odd place as pairs of 16 bits: two multiply-adds of pairs give each column's
// sum of four.
HWY_ATTR void multiply_row(const Tile& tile, int64_t row, int64_t first, int32_t* sums) {
  const Di di;
  const hn::Repartition<int16_t, Di> d16;
  constexpr int64_t kVectors = 4;
  const auto lanes = static_cast<int64_t>(hn::Lanes(di));
  const auto low_bytes = hn::Set(di, 0x00ff00ff);
  hn::Vec<Di> sum[kVectors] = {hn::Zero(di), hn::Zero(di), hn::Zero(di), hn::Zero(di)};
  auto unused = hn::Zero(di);
  const int8_t* x = tile.codes + row * tile.row_stride;
  const uint8_t* weight = tile.weight + 4 * first;
  for (int64_t quad = 0; quad < tile.quads; ++quad, x += 4, weight += 4 * kTileColumns) {
    const auto pair = [&](int i) HWY_ATTR {
      const uint32_t bits = static_cast<uint16_t>(int16_t{x[i]}) |
                            (static_cast<uint32_t>(static_cast<uint16_t>(int16_t{x[i + 2]})) << 16);
      return hn::BitCast(d16, hn::Set(di, static_cast<int32_t>(bits)));
    };
    const auto even = pair(0), odd = pair(1);
    for (int64_t v = 0; v < kVectors; ++v) {
      const auto w = hn::LoadU(di, reinterpret_cast<const int32_t*>(weight + 4 * v * lanes));
      const auto w_even = hn::BitCast(d16, hn::And(w, low_bytes));
      const auto w_odd = hn::BitCast(d16, hn::And(hn::ShiftRight<8>(w), low_bytes));
      sum[v] = hn::ReorderWidenMulAccumulate(di, w_even, even, sum[v], unused);
      sum[v] = hn::ReorderWidenMulAccumulate(di, w_odd, odd, sum[v], unused);
    }
  }
  for (int64_t v = 0; v < kVectors; ++v)
    hn::StoreU(sum[v], di, sums + v * lanes);
}

HWY_ATTR void portable_tile(const Tile& tile) {
  const auto step = 4 * static_cast<int64_t>(hn::Lanes(Di()));
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t first = 0; first < kTileColumns; first += step)
      multiply_row(tile, r, first, tile.sums + r * kTileColumns + first);
  }
}
#else
void portable_tile(const Tile& tile) {
  std::fill_n(tile.sums, tile.rows * kTileColumns, 0);
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t k = 0; k < 4 * tile.quads; ++k) {
      const uint8_t* weight = tile.weight + k / 4 * 4 * kTileColumns + k % 4;
      for (int64_t c = 0; c < kTileColumns; ++c)
        tile.sums[r * kTileColumns + c] += tile.codes[r * tile.row_stride + k] * weight[4 * c];
    }
  }
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels::int8
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels::int8 {

HWY_EXPORT(quantize_row_of);
HWY_EXPORT(absmax_of);
HWY_EXPORT(weight_codes);
HWY_EXPORT(interleave_codes);
HWY_EXPORT(finish_row);
HWY_EXPORT(portable_tile);

RowCodes quantize_row(const TensorView& x, int64_t row, const float* factors, int64_t padded,
                      int8_t* codes) {
  std::fill(codes + x.dim(1), codes + padded, int8_t{0});
  return HWY_DYNAMIC_DISPATCH(quantize_row_of)(x, row, factors, codes);
}

float row_absmax(const float* x, const float* factors, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(absmax_of)(x, factors, count);
}

void weight_codes(const float* x, const float* column_factors, float row_factor, int64_t count,
                  uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(weight_codes)(x, column_factors, row_factor, count, codes);
}

void interleave_codes(const uint8_t* const rows[4], uint8_t* out) {
  HWY_DYNAMIC_DISPATCH(interleave_codes)(rows, out);
}

void finish_row(const Finish& finish, const TensorView& c, int64_t offset) {
  HWY_DYNAMIC_DISPATCH(finish_row)(finish, c, offset);
}

void portable_tile(const Tile& tile) { HWY_DYNAMIC_DISPATCH(portable_tile)(tile); }

}  // namespace shardtune::kernels::int8
#endif
