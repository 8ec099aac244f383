// Matrix products over oneDNN. Forward and input-gradient products run on all threads and give the
// same bits at any thread count; products that reduce over tokens go through gemm_over_tokens.
#pragma once

#include <cstdint>
#include <functional>

#include "core/tensor.h"

namespace shardtune::kernels {

/// Whether a kernel writes its output or adds to what stands there (in the output's dtype).
enum class Accumulate { kNo, kYes };
enum class Transpose { kNo, kYes };

/// c [M,N] (+)= scale * a [M,K] * op(b), op(b) = b [K,N] or b^T with b [N,K]
/// Dtypes  a and b the same, f32 or bf16; c f32 or bf16; sums in f32
/// Exact   each row of c has the same bits for any number of threads (and rows: few_rows_limit.h)
/// Errors  ArgumentError: shapes or dtypes that do not fit
void gemm(const TensorView& a, const TensorView& b, Transpose transpose_b, const TensorView& c,
          Accumulate accumulate, float scale = 1.0f);

/// Part of a matrix as it is stored.
struct Block {
  int64_t first_row = 0, num_rows = 0;
  int64_t first_column = 0, num_columns = 0;
};
/// Writes a block of b to `out` [num_rows, num_columns], on the calling thread; several threads
/// call it at once.
using BlockSource = std::function<void(const Block& block, const TensorView& out)>;

/// c [M,N] (+)= a [M,K] * op(b), where b is made block by block and is never whole in memory (a
/// quantised weight): many rows of a take it in panels small enough for the last cache to keep, few
/// in blocks that stay in the core's own. K is at least 1.
/// Dtypes  a f32 or bf16, blocks the same; c f32 or bf16; sums in f32
/// Exact   as gemm, and the bits of gemm with the whole b where that takes no more than one panel
/// Errors  ArgumentError: shapes or dtypes that do not fit
void gemm_by_panels(const TensorView& a, const BlockSource& b, Transpose transpose_b,
                    const TensorView& c, Accumulate accumulate);

/// out [M,N] = y [M,N] + scale * a [M,K] b [N,K]^T, added in f32 and rounded once: a small second
/// term is not lost between the steps of a bf16 first one.
/// Dtypes  y f32; a and b the same, f32 or bf16; out f32 or bf16
/// Exact   as gemm
void gemm_onto(const TensorView& y, const TensorView& a, const TensorView& b, const TensorView& out,
               float scale = 1.0f);

/// A second term of a product: scale * u [M,R] b [N,R]^T.
struct LowRankTerm {
  TensorView u, b;
  float scale = 1.0f;
};
/// c [M,N] = a [M,K] b [N,K]^T + term, added in f32 and rounded once. In bf16, many rows of a and R
/// up to 64 take the sums of a block to the second term while the core's cache has them: they are
/// written once and rounded, where gemm and gemm_onto write and read them in f32.
/// Dtypes  a, b and term's factors the same, f32 or bf16; c f32 or bf16
/// Exact   as gemm
void gemm_with_low_rank(const TensorView& a, const TensorView& b, const LowRankTerm& term,
                        const TensorView& c);
/// The same where b is made block by block, as in gemm_by_panels.
void gemm_by_panels_with_low_rank(const TensorView& a, const BlockSource& b,
                                  const LowRankTerm& term, const TensorView& c);

/// out [N,K] (+)= scale * dy [T,N]^T * x [T,K], summed over tokens in fixed chunks of 512 tokens,
/// each one single-threaded product, added in order (DESIGN section 8.1).
/// Dtypes  dy and x the same, f32 or bf16; out f32
void gemm_over_tokens(const TensorView& dy, const TensorView& x, const TensorView& out,
                      Accumulate accumulate, float scale = 1.0f);

inline constexpr int64_t kTokenChunk = 512;

/// Whether this machine multiplies bf16 in hardware (AVX512-BF16 or AMX); `compute_dtype: auto`.
bool has_fast_bfloat16();

}  // namespace shardtune::kernels
