// Compiled with AVX512-BF16 enabled: includes nothing but plain structs and intrinsics (see
// few_rows_task.h). A tile of a product, 6 rows and 64 columns, keeps its 24 sums in registers over
// all of k and meets the second term and the rounding there, so that every value of c is touched
// once. A product over tokens pairs two rows of the wide side in registers, as they are read: no
// copy of it is made, which costs a general product more than the arithmetic.
#include <immintrin.h>

#include "kernels/thin_task.h"

namespace shardtune::kernels::thin {

namespace {
constexpr int kRowsOfTile = 6;
constexpr int kVectorsOfTile = 4;

__mmask16 first_lanes(int64_t count) {
  return count >= kColumnStep ? static_cast<__mmask16>(0xffff)
                              : static_cast<__mmask16>((uint32_t{1} << count) - 1);
}

// To the nearest, ties to even; below the normal numbers zero, as VDPBF16PS has them.
__m256i to_bfloat16(__m512 value) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)); }

uint32_t pair_at(const uint16_t* p) {
  uint32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return pair;
}

// One vector of sums into row `row` of c, at column `column`.
void put(__m512 sums, const Task& task, int64_t row, int64_t column) {
  const __mmask16 lanes = first_lanes(task.n - column);
  const __m512 onto = _mm512_maskz_loadu_ps(lanes, task.onto + row * task.onto_stride + column);
  const __m512 value = _mm512_add_ps(onto, _mm512_mul_ps(sums, _mm512_set1_ps(task.scale)));
  if (task.c_is_bf16) {
    auto* const to = static_cast<uint16_t*>(task.c) + row * task.c_stride + column;
    return _mm256_mask_storeu_epi16(to, lanes, to_bfloat16(value));
  }
  auto* const to = static_cast<float*>(task.c) + row * task.c_stride + column;
  _mm512_mask_storeu_ps(to, lanes, value);
}

template <int kRows, int kVectors>
void run_tile(const Task& task, int64_t row, int64_t column) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      sums[i][j] = _mm512_setzero_ps();
  const uint16_t* const a = task.a + row * task.a_stride;
  const uint32_t* const b = task.b + column;
  const auto add = [&](int64_t pair, auto pair_of_row) {
    __m512bh columns[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      columns[j] = reinterpret_cast<__m512bh>(
          _mm512_loadu_si512(b + pair * task.b_stride + j * kColumnStep));
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const __m512i both = _mm512_set1_epi32(static_cast<int>(pair_of_row(i)));
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j)
        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], reinterpret_cast<__m512bh>(both), columns[j]);
    }
  };
  for (int64_t p = 0; p < task.k / 2; ++p)
    add(p, [&](int i) { return pair_at(a + i * task.a_stride + 2 * p); });
  if (task.k % 2 != 0)
    add(task.k / 2, [&](int i) { return uint32_t{a[i * task.a_stride + task.k - 1]}; });
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      put(sums[i][j], task, row + i, column + j * kColumnStep);
}

template <int kRows>
void run_rows(const Task& task, int64_t row) {
  int64_t column = 0;
  for (; column + kVectorsOfTile * kColumnStep <= task.n; column += kVectorsOfTile * kColumnStep)
    run_tile<kRows, kVectorsOfTile>(task, row, column);
  for (; column < task.n; column += kColumnStep)
    run_tile<kRows, 1>(task, row, column);
}

void product(const Task& task) {
  int64_t row = 0;
  for (; row + kRowsOfTile <= task.m; row += kRowsOfTile)
    run_rows<kRowsOfTile>(task, row);
  for (; row < task.m; ++row)
    run_rows<1>(task, row);
}

constexpr int64_t kWideColumns = 32;  // one vector of bf16: two of sums

// Columns of one vector as pairs of two rows lie in halves of 128 bits: these put sums of low and
// high pairs back into order.
__m512i order_of(int first) {
  alignas(64) int lanes[16];
  for (int i = 0; i < 16; ++i) {
    const int column = first + i;  // of 32: four in the low pairs, four in the high ones, ...
    lanes[i] = column / 8 * 4 + column % 4 + (column % 8 >= 4 ? 16 : 0);
  }
  return _mm512_load_si512(lanes);
}

void put_sums(__m512 sums, float* to, __mmask16 lanes, const TokensTask& task) {
  __m512 value = _mm512_mul_ps(sums, _mm512_set1_ps(task.scale));
  if (task.accumulate)
    value = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, to), value);
  _mm512_mask_storeu_ps(to, lanes, value);
}

// kRankStep rows of the sums from `rank` on, and 32 columns from `column` on.
void run_tokens_tile(const TokensTask& task, int64_t rank, int64_t column) {
  const int64_t left = task.columns - column;
  const __mmask32 mask =
      left >= kWideColumns ? ~__mmask32{0} : static_cast<__mmask32>((uint32_t{1} << left) - 1);
  __m512 low[kRankStep], high[kRankStep];
#pragma GCC unroll 8
  for (int i = 0; i < kRankStep; ++i)
    low[i] = high[i] = _mm512_setzero_ps();
  for (int64_t token = 0; token < task.tokens; token += 2) {
    const uint16_t* const row = task.wide + token * task.wide_stride + column;
    const __m512i first = _mm512_maskz_loadu_epi16(mask, row);
    const __m512i second = token + 1 < task.tokens
                               ? _mm512_maskz_loadu_epi16(mask, row + task.wide_stride)
                               : _mm512_setzero_si512();
    const auto low_pairs = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(first, second));
    const auto high_pairs = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(first, second));
    const uint32_t* const narrow = task.narrow + token / 2 * task.narrow_stride + rank;
#pragma GCC unroll 8
    for (int i = 0; i < kRankStep; ++i) {
      const auto both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(narrow[i])));
      low[i] = _mm512_dpbf16_ps(low[i], both, low_pairs);
      high[i] = _mm512_dpbf16_ps(high[i], both, high_pairs);
    }
  }
  const __m512i front = order_of(0), back = order_of(16);
#pragma GCC unroll 8
  for (int i = 0; i < kRankStep; ++i) {
    if (rank + i >= task.rank)
      break;
    float* const to = task.sums + (rank + i) * task.sums_stride + column;
    put_sums(_mm512_permutex2var_ps(low[i], front, high[i]), to, first_lanes(left), task);
    if (left > kColumnStep)
      put_sums(_mm512_permutex2var_ps(low[i], back, high[i]), to + kColumnStep,
               first_lanes(left - kColumnStep), task);
  }
}

void over_tokens(const TokensTask& task) {
  for (int64_t column = 0; column < task.columns; column += kWideColumns)
    for (int64_t rank = 0; rank < task.rank; rank += kRankStep)
      run_tokens_tile(task, rank, column);
}

constexpr Functions kFunctions = {&product, &over_tokens};
}  // namespace

const Functions* machine_functions() { return &kFunctions; }

}  // namespace shardtune::kernels::thin
