// foreach_target.h stands before every other header of Highway.
// clang-format off
#include "kernels/column_scale_cpu.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/column_scale_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE Vf value_or_zero(Row row, bool is_there, size_t i, size_t n) {
  return is_there ? load_n(row, i, n) : hn::Zero(Df());
}

void ColumnScaleRows(const ColumnScale& args, int64_t first_row, int64_t last_row) {
  const int64_t width = args.y.dim(1);
  const bool shifts = !args.shift.empty(), copies = !args.copy.empty();
  const Row factor = row_of(args.factor), shift = row_of(args.shift);
  for (int64_t t = first_row; t < last_row; ++t) {
    const Row y = row_of(args.y) + t * width, z = row_of(args.z) + t * width;
    const Row copy = copies ? row_of(args.copy) + t * width : Row();
    for_each_vector(static_cast<size_t>(width), [&](size_t i, size_t n) HWY_ATTR {
      const Vf value = load_n(y, i, n);
      store_n(hn::Add(hn::Mul(value, load_n(factor, i, n)), value_or_zero(shift, shifts, i, n)), z,
              i, n);
      if (copies)
        store_n(value, copy, i, n);
    });
  }
}

void ColumnScaleBackwardBlock(const ColumnScaleBackward& args, const cpu::RowsAndColumns& block,
                              float* sums) {
  const int64_t width = args.dz.dim(1);
  const bool centred = !args.centre.empty();
  const Row factor = row_of(args.factor) + block.first_column;
  const Row centre = centred ? row_of(args.centre) + block.first_column : Row();
  const Row sum{sums, nullptr};
  const auto count = static_cast<size_t>(block.last_column - block.first_column);
  for (int64_t t = block.first_row; t < block.last_row; ++t) {
    const int64_t first = t * width + block.first_column;
    const Row dz = row_of(args.dz) + first, y = row_of(args.y) + first;
    for_each_vector(count, [&](size_t i, size_t n) HWY_ATTR {
      const Vf gradient = load_n(dz, i, n);
      const Vf value = hn::Sub(load_n(y, i, n), value_or_zero(centre, centred, i, n));
      store_n(hn::MulAdd(gradient, value, load_n(sum, i, n)), sum, i, n);
      store_n(hn::Mul(gradient, load_n(factor, i, n)), dz, i, n);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {

HWY_EXPORT(ColumnScaleRows);
HWY_EXPORT(ColumnScaleBackwardBlock);

namespace cpu {
void column_scale(const ColumnScale& args, int64_t first_row, int64_t last_row) {
  HWY_DYNAMIC_DISPATCH(ColumnScaleRows)(args, first_row, last_row);
}
void column_scale_backward(const ColumnScaleBackward& args, const RowsAndColumns& block,
                           float* sums) {
  HWY_DYNAMIC_DISPATCH(ColumnScaleBackwardBlock)(args, block, sums);
}
}  // namespace cpu

}  // namespace shardtune::kernels
#endif
