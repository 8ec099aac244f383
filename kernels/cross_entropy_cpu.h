// The vector forms behind cross_entropy.cpp: one call is one row.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace shardtune::kernels::cpu {

/// Running maximum and sum of exp(logit - max) of one row.
struct RowStats {
  float max, sum;
};
RowStats merge_row(const float* logits, int64_t n, RowStats before);
/// out [n] = scale * exp(logits - max) / sum.
struct SoftmaxRow {
  const float* logits;
  int64_t n;
  RowStats stats;
  float scale;
};
void scaled_softmax_row(const SoftmaxRow& row, const TensorView& out);

}  // namespace shardtune::kernels::cpu
