// The vector forms behind norm.cpp: one call is one thread's rows or columns.
#pragma once

#include "kernels/norm.h"

namespace shardtune::kernels::cpu {

struct RmsNormForward {
  TensorView x, weight, y, rstd;
  float eps = 0.0f;
};
void rms_norm_rows(const RmsNormForward& args, int64_t begin, int64_t end);
void rms_norm_backward_rows(const RmsNormBackward& args, Accumulate accumulate_dx, int64_t begin,
                            int64_t end);
/// dweight of columns [begin, end), over all rows: of dy (x - mean) rstd. No mean: zero.
struct NormDweight {
  TensorView dy, x, mean, rstd;
  TensorView dweight;
};
void norm_dweight_columns(const NormDweight& args, int64_t begin, int64_t end);

void layer_norm_rows(const LayerNormForward& args, int64_t begin, int64_t end);
void layer_norm_backward_rows(const LayerNormBackward& args, Accumulate accumulate_dx,
                              int64_t begin, int64_t end);

}  // namespace shardtune::kernels::cpu
