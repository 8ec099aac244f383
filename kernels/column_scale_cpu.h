// The vector forms behind column_scale.cpp: one call is one thread's block.
#pragma once

#include <cstdint>

#include "kernels/column_scale.h"

namespace shardtune::kernels::cpu {

void column_scale(const ColumnScale& args, int64_t first_row, int64_t last_row);
/// Columns [first_column, last_column) of some rows; their dots are added to `sums`.
struct RowsAndColumns {
  int64_t first_row, last_row, first_column, last_column;
};
void column_scale_backward(const ColumnScaleBackward& args, const RowsAndColumns& block,
                           float* sums);

}  // namespace shardtune::kernels::cpu
