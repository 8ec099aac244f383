// Products whose left side has few rows (decoding, steps of few tokens): bound by reading b, which
// oneDNN would first copy into a layout of its own. Here b is read, or decoded, once and multiplied
// while it is in the cache. Private to kernels/.
#pragma once

#include "kernels/few_rows_limit.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

struct FewRowsProduct {
  TensorView a;
  Transpose transpose_b = Transpose::kNo;
  TensorView b;                         // as gemm's b; empty when there is a source
  const BlockSource* source = nullptr;  // decodes b
  TensorView c;
  Accumulate accumulate = Accumulate::kNo;
  float scale = 1.0f;
  TensorView onto;  // f32, added before c is rounded (gemm_onto); empty: nothing
};

/// c (+)= scale * a * op(b) (+ onto) on all threads. Arguments as gemm and gemm_by_panels check
/// them.
/// Exact   each row of c has the same bits for any number of threads and beside any other rows,
///         with b whole or decoded
void few_rows_product(const FewRowsProduct& product);

/// Columns [first_column, first_column + num_columns) of c (+)= scale * sums, rounded once.
struct SumsOutput {
  TensorView c;
  int64_t first_column = 0, num_columns = 0;
  const float* sums = nullptr;
  int64_t sums_stride = 0;
  Accumulate accumulate = Accumulate::kNo;
  float scale = 1.0f;
  TensorView onto;  // as in FewRowsProduct
};
/// On the calling thread.
void store_sums(const SumsOutput& output);

}  // namespace shardtune::kernels
