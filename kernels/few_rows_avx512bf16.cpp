// Compiled with AVX512-BF16 enabled: includes nothing but plain structs and intrinsics (see
// few_rows_task.h). dot takes pairs along a row of b as they lie; spread interleaves two rows of b
// in registers. Tiles hold up to 24 sums, which hides the latency of VDPBF16PS.
#include <immintrin.h>

#include "kernels/few_rows_task.h"

namespace shardtune::kernels::few_rows {

namespace {
constexpr int64_t kPairs = 32;  // bf16 of one vector

__m512 dot_pairs(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

__mmask32 first_words(int64_t count) {
  return count >= kPairs ? ~__mmask32{0} : static_cast<__mmask32>((uint32_t{1} << count) - 1);
}

// The sums of the lanes of four vectors.
__m128 add_lanes(__m512 s0, __m512 s1, __m512 s2, __m512 s3) {
  const __m512 t01 = _mm512_add_ps(_mm512_unpacklo_ps(s0, s1), _mm512_unpackhi_ps(s0, s1));
  const __m512 t23 = _mm512_add_ps(_mm512_unpacklo_ps(s2, s3), _mm512_unpackhi_ps(s2, s3));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(t01), _mm512_castps_pd(t23));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(t01), _mm512_castps_pd(t23));
  const __m512 quads = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// kRows rows of a and kColumns of b, at most 24 sums.
template <int kRows, int kColumns>
void dot_tile(const uint16_t* a, const uint16_t* b, float* out, const Task& task) {
  __m512 sums[kRows][kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j)
      sums[i][j] = _mm512_setzero_ps();
  for (int64_t p = 0; p < task.k; p += kPairs) {
    const __mmask32 mask = first_words(task.k - p);
    __m512i rows[kRows];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
      rows[i] = _mm512_maskz_loadu_epi16(mask, a + i * task.a_stride + p);
#pragma GCC unroll 8
    for (int j = 0; j < kColumns; ++j) {
      const __m512i column = _mm512_maskz_loadu_epi16(mask, b + j * task.b_stride + p);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i)
        sums[i][j] = dot_pairs(sums[i][j], rows[i], column);
    }
  }
  const __m512 zero = _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kColumns; j += 4) {
      const __m128 four = add_lanes(sums[i][j], j + 1 < kColumns ? sums[i][j + 1] : zero,
                                    j + 2 < kColumns ? sums[i][j + 2] : zero,
                                    j + 3 < kColumns ? sums[i][j + 3] : zero);
      const int count = kColumns - j < 4 ? kColumns - j : 4;
      _mm_mask_storeu_ps(out + i * task.sums_stride + j, static_cast<__mmask8>((1 << count) - 1),
                         four);
    }
  }
}

template <int kRows>
void dot_rows(const uint16_t* a, float* out, const Task& task) {
  constexpr int kColumns = kRows <= 3 ? 8 : 4;
  const auto* const b = static_cast<const uint16_t*>(task.b);
  int64_t j = 0;
  for (; j + kColumns <= task.n; j += kColumns)
    dot_tile<kRows, kColumns>(a, b + j * task.b_stride, out + j, task);
  if (kColumns > 4 && j + 4 <= task.n) {
    dot_tile<kRows, 4>(a, b + j * task.b_stride, out + j, task);
    j += 4;
  }
  switch (task.n - j) {
    case 3:
      return dot_tile<kRows, 3>(a, b + j * task.b_stride, out + j, task);
    case 2:
      return dot_tile<kRows, 2>(a, b + j * task.b_stride, out + j, task);
    case 1:
      return dot_tile<kRows, 1>(a, b + j * task.b_stride, out + j, task);
    default:
      return;
  }
}

using RowsFunction = void (*)(const uint16_t* a, float* out, const Task& task);

// Tiles of nearly equal height, at most kMost rows.
template <int kMost>
void run_tiles(const RowsFunction (&functions)[kMost], const Task& task) {
  const auto* const a = static_cast<const uint16_t*>(task.a);
  const int64_t tiles = (task.m + kMost - 1) / kMost;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = task.m * t / tiles, count = task.m * (t + 1) / tiles - first;
    functions[count - 1](a + first * task.a_stride, task.sums + first * task.sums_stride, task);
  }
}

void dot(const Task& task) {
  static constexpr RowsFunction kRows[] = {&dot_rows<1>, &dot_rows<2>, &dot_rows<3>,
                                           &dot_rows<4>, &dot_rows<5>, &dot_rows<6>};
  run_tiles(kRows, task);
}

// Interleaving two rows of 32 leaves columns 8q + [0, 4) in one vector and 8q + [4, 8) in the
// other; these put sums into that order and back.
struct Halves {
  __m512 low, high;
};
Halves split_columns(const float* sums) {
  const __m512 first = _mm512_loadu_ps(sums), second = _mm512_loadu_ps(sums + 16);
  return {_mm512_shuffle_f32x4(first, second, _MM_SHUFFLE(2, 0, 2, 0)),
          _mm512_shuffle_f32x4(first, second, _MM_SHUFFLE(3, 1, 3, 1))};
}
void join_columns(const Halves& halves, float* sums) {
  const __m512 even = _mm512_shuffle_f32x4(halves.low, halves.high, _MM_SHUFFLE(1, 0, 1, 0));
  const __m512 odd = _mm512_shuffle_f32x4(halves.low, halves.high, _MM_SHUFFLE(3, 2, 3, 2));
  constexpr int kOrder = _MM_SHUFFLE(3, 1, 2, 0);
  _mm512_storeu_ps(sums, _mm512_shuffle_f32x4(even, even, kOrder));
  _mm512_storeu_ps(sums + 16, _mm512_shuffle_f32x4(odd, odd, kOrder));
}

uint32_t pair_at(const uint16_t* p) {
  uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return pair;
}

// kRows rows of a and kGroups times 32 columns of b; of the last 32 those in `mask`.
template <int kRows, int kGroups>
void spread_tile(const uint16_t* a, const uint16_t* b, float* out, const Task& task,
                 __mmask32 mask) {
  Halves sums[kRows][kGroups];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g)
      sums[i][g] = split_columns(out + i * task.sums_stride + g * kSpreadStep);
  const auto add_pair = [&](const uint16_t* first, const uint16_t* second, auto pair_of) {
    __m512i low[kGroups], high[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      const __mmask32 words = g + 1 < kGroups ? ~__mmask32{0} : mask;
      const __m512i r0 = _mm512_maskz_loadu_epi16(words, first + g * kSpreadStep);
      const __m512i r1 = second == nullptr
                             ? _mm512_setzero_si512()
                             : _mm512_maskz_loadu_epi16(words, second + g * kSpreadStep);
      low[g] = _mm512_unpacklo_epi16(r0, r1);
      high[g] = _mm512_unpackhi_epi16(r0, r1);
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const __m512i pair = _mm512_set1_epi32(static_cast<int>(pair_of(i)));
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        sums[i][g].low = dot_pairs(sums[i][g].low, pair, low[g]);
        sums[i][g].high = dot_pairs(sums[i][g].high, pair, high[g]);
      }
    }
  };
  int64_t p = 0;
  for (; p + 2 <= task.k; p += 2)
    add_pair(b + p * task.b_stride, b + (p + 1) * task.b_stride,
             [&](int i) { return pair_at(a + i * task.a_stride + p); });
  if (p < task.k)
    add_pair(b + p * task.b_stride, nullptr,
             [&](int i) { return uint32_t{a[i * task.a_stride + p]}; });
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g)
      join_columns(sums[i][g], out + i * task.sums_stride + g * kSpreadStep);
}

template <int kRows>
void spread_rows(const uint16_t* a, float* out, const Task& task) {
  constexpr int kGroups = kRows <= 3 ? 4 : kRows <= 6 ? 2 : 1;
  constexpr int64_t kColumns = kGroups * kSpreadStep;
  const auto* const b = static_cast<const uint16_t*>(task.b);
  int64_t j = 0;
  for (; j + kColumns <= task.n; j += kColumns)
    spread_tile<kRows, kGroups>(a, b + j, out + j, task, ~__mmask32{0});
  for (; j < task.n; j += kSpreadStep)
    spread_tile<kRows, 1>(a, b + j, out + j, task, first_words(task.n - j));
}

void spread(const Task& task) {
  static constexpr RowsFunction kRows[] = {&spread_rows<1>,  &spread_rows<2>,  &spread_rows<3>,
                                           &spread_rows<4>,  &spread_rows<5>,  &spread_rows<6>,
                                           &spread_rows<7>,  &spread_rows<8>,  &spread_rows<9>,
                                           &spread_rows<10>, &spread_rows<11>, &spread_rows<12>};
  run_tiles(kRows, task);
}
}  // namespace

const Functions* machine_functions() {
  static constexpr Functions kFunctions{&dot, &spread};
  return &kFunctions;
}

}  // namespace shardtune::kernels::few_rows
