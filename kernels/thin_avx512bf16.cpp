// Compiled with AVX512-BF16 enabled: includes nothing but plain structs and intrinsics (see
// few_rows_task.h). A tile of 6 rows and 64 columns keeps its 24 sums in registers over all of k
// and meets the second term and the rounding there, so that every value of c is touched once.
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

void run(const Task& task) {
  int64_t row = 0;
  for (; row + kRowsOfTile <= task.m; row += kRowsOfTile)
    run_rows<kRowsOfTile>(task, row);
  for (; row < task.m; ++row)
    run_rows<1>(task, row);
}
}  // namespace

Function machine_function() { return &run; }

}  // namespace shardtune::kernels::thin
