// Products over a short inner dimension, and products over tokens of which one side is narrow, as
// adapters of low rank have them: bound by reading and writing the wide side, which is touched once
// and as it lies here, where a general product packs it first. Private to kernels/.
#pragma once

#include "kernels/gemm.h"

namespace shardtune::kernels {

/// Columns of the narrow side, and the inner dimension, up to which these forms are taken.
inline constexpr int64_t kThin = 64;

/// Whether this machine multiplies bf16 in hardware and has these forms.
bool has_thin();

/// A second term of a product in bf16 with R <= kThin, laid out for adding it block by block. The
/// views of the term outlive it.
class ThinTerm {
 public:
  explicit ThinTerm(const LowRankTerm& term);

  /// The block of c = onto + the block of the term, added in f32 and rounded once, on the calling
  /// thread. `onto`: f32, the block alone, rows `onto_stride` apart. The block's first column is a
  /// multiple of 16. c f32 or bf16.
  /// Exact   each value of c has the same bits whatever the blocks
  void add(const Block& block, const float* onto, int64_t onto_stride, const TensorView& c) const;

 private:
  LowRankTerm term_;
  Tensor pairs_;  // of b, [pairs of R, pair_stride_]
  int64_t pair_stride_ = 0;
};

/// gemm_onto of bf16 with K <= kThin, on all threads, its arguments checked.
/// Exact   each value of out has the same bits for any number of threads and rows
void thin_onto(const TensorView& y, const LowRankTerm& term, const TensorView& out);

/// out [R,N] (+)= scale * narrow [T,R]^T * wide [T,N], or its transpose [N,R], summed over tokens
/// in chunks of kTokenChunk that are added in order; R <= kThin.
/// Dtypes  narrow and wide bf16, out f32
/// Exact   each value of out has the same bits for any number of threads and columns
void thin_over_tokens(const TensorView& narrow, const TensorView& wide, const TensorView& out,
                      Transpose transpose_out, Accumulate accumulate, float scale);

}  // namespace shardtune::kernels
