// The f32 form of products of few rows, and the last rounding of both forms.
// clang-format off
#include "kernels/few_rows.h"
#include "kernels/few_rows_task.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/few_rows_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

inline Row row_of_b(const few_rows::Task& task, int64_t offset) {
  void* const data = const_cast<void*>(task.b);
  return task.b_is_bf16 != 0 ? Row{nullptr, static_cast<uint16_t*>(data) + offset}
                             : Row{static_cast<float*>(data) + offset, nullptr};
}

// 4 x 2 sums and 2 vectors of b fit the registers of every target.
inline constexpr int kDotRows = 4;
inline constexpr int kDotColumns = 2;

template <int kRows, int kColumns>
HWY_INLINE void dot_tile(const few_rows::Task& task, int64_t i0, int64_t j0) {
  const Df df;
  const auto* const a = static_cast<const float*>(task.a) + i0 * task.a_stride;
  Vf sums[kRows][kColumns];
  Row rows[kColumns];
#pragma GCC unroll 4
  for (int j = 0; j < kColumns; ++j) {
    rows[j] = row_of_b(task, (j0 + j) * task.b_stride);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
      sums[i][j] = hn::Zero(df);
  }
  for_each_vector(static_cast<size_t>(task.k), [&](size_t p, size_t count) HWY_ATTR {
    Vf column[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j)
      column[j] = load_n(rows[j], p, count);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const Row row{const_cast<float*>(a) + i * task.a_stride, nullptr};
      const Vf value = load_n(row, p, count);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j)
        sums[i][j] = hn::MulAdd(value, column[j], sums[i][j]);
    }
  });
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j)
      task.sums[(i0 + i) * task.sums_stride + j0 + j] = sum_of_lanes(sums[i][j]);
}

template <int kRows>
HWY_INLINE void dot_rows(const few_rows::Task& task, int64_t i0) {
  int64_t j = 0;
  for (; j + kDotColumns <= task.n; j += kDotColumns)
    dot_tile<kRows, kDotColumns>(task, i0, j);
  for (; j < task.n; ++j)
    dot_tile<kRows, 1>(task, i0, j);
}

void Dot(const few_rows::Task& task) {
  int64_t i = 0;
  for (; i + kDotRows <= task.m; i += kDotRows)
    dot_rows<kDotRows>(task, i);
  for (; i < task.m; ++i)
    dot_rows<1>(task, i);
}

// One or two vectors of columns; of the last one, b has `last` (its sums are padded).
inline constexpr int kSpreadTileRows = 4;

template <int kRows, int kVectors>
HWY_INLINE void spread_tile(const few_rows::Task& task, int64_t i0, int64_t j0, size_t last) {
  const Df df;
  const size_t lanes = hn::Lanes(df);
  const auto* const a = static_cast<const float*>(task.a) + i0 * task.a_stride;
  float* const out = task.sums + i0 * task.sums_stride + j0;
  Vf sums[kRows][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      sums[i][v] = hn::LoadU(df, out + i * task.sums_stride + v * lanes);
  for (int64_t p = 0; p < task.k; ++p) {
    const Row b = row_of_b(task, p * task.b_stride + j0);
    Vf row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      row[v] = load_n(b, v * lanes, v + 1 < kVectors ? lanes : last);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const Vf value = hn::Set(df, a[i * task.a_stride + p]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        sums[i][v] = hn::MulAdd(value, row[v], sums[i][v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(sums[i][v], df, out + i * task.sums_stride + v * lanes);
}

template <int kRows>
HWY_INLINE void spread_rows(const few_rows::Task& task, int64_t i0) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Df()));
  int64_t j = 0;
  for (; j + 2 * lanes <= task.n; j += 2 * lanes)
    spread_tile<kRows, 2>(task, i0, j, static_cast<size_t>(lanes));
  for (; j < task.n; j += lanes)
    spread_tile<kRows, 1>(task, i0, j, static_cast<size_t>(task.n - j));
}

void Spread(const few_rows::Task& task) {
  int64_t i = 0;
  for (; i + kSpreadTileRows <= task.m; i += kSpreadTileRows)
    spread_rows<kSpreadTileRows>(task, i);
  for (; i < task.m; ++i)
    spread_rows<1>(task, i);
}

void StoreSums(const SumsOutput& output) {
  const TensorView& c = output.c;
  const Vf factor = hn::Set(Df(), output.scale);
  for (int64_t i = 0; i < c.dim(0); ++i) {
    const Row target = row_of(c) + (i * c.dim(1) + output.first_column);
    const Row sums{const_cast<float*>(output.sums) + i * output.sums_stride, nullptr};
    const bool has_onto = !output.onto.empty();
    const Row onto = has_onto ? row_of(output.onto) + (i * c.dim(1) + output.first_column) : Row{};
    for_each_vector(static_cast<size_t>(output.num_columns), [&](size_t j, size_t n) HWY_ATTR {
      Vf value = hn::Mul(load_n(sums, j, n), factor);
      if (output.accumulate == Accumulate::kYes)
        value = hn::Add(load_n(target, j, n), value);
      if (has_onto)
        value = hn::Add(load_n(onto, j, n), value);
      store_n(value, target, j, n);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {

HWY_EXPORT(Dot);
HWY_EXPORT(Spread);
HWY_EXPORT(StoreSums);

void store_sums(const SumsOutput& output) { HWY_DYNAMIC_DISPATCH(StoreSums)(output); }

namespace few_rows {
const Functions& float_functions() {
  static constexpr Functions kFunctions{[](const Task& task) {
                                          HWY_DYNAMIC_DISPATCH(Dot)
                                          (task);
                                        },
                                        [](const Task& task) {
                                          HWY_DYNAMIC_DISPATCH(Spread)(task);
                                        }};
  return kFunctions;
}
}  // namespace few_rows

}  // namespace shardtune::kernels
#endif
