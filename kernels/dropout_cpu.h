// The vector form behind dropout.cpp: one call is one row.
#pragma once

#include <cstdint>

#include "kernels/elementwise.h"

namespace shardtune::kernels::cpu {

/// Philox key and counter words of one row, and what is kept: words whose upper 24 bits reach
/// `threshold`, times `scale`.
struct DropoutRow {
  uint64_t seed = 0, sample = 0;
  uint32_t token = 0, threshold = 0;
  float scale = 1.0f;
};
void dropout_row(const DropoutRow& row, const TensorView& x, const TensorView& y,
                 Accumulate accumulate);

}  // namespace shardtune::kernels::cpu
