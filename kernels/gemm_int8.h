// Products in 8-bit integers (W8A8): rows of activations or gradients are quantised to int8 with a
// scale of their own, the frozen weight with a scale per row, sums are exact in int32, and one
// rounding to f32 with two products by scales ends it. Since integer sums do not depend on their
// order, every machine, thread count and form of the kernel gives the same bits.
// What makes it fast: VPDPBUSD multiplies 64 pairs an instruction, twice as many as bf16; the
// weight is decoded straight into the layout it wants, panel by panel.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

/// Longest sum that fits int32: 255 * 127 * 65,536 < 2^31.
inline constexpr int64_t kInt8MaxDepth = 65536;

/// x [M,K] = codes * scale of the row, codes in [-127, 127].
struct Int8Rows {
  Tensor codes;       // int8 [M, K rounded up to 4], zeros past K
  Tensor scales;      // f32 [M], absmax / 127; NaN for a row with a value that is not finite
  Tensor sums;        // i32 [M], of the codes
  int64_t depth = 0;  // K
};
/// Quantises x [M,K] * factors [K], each row by its own absmax, to nearest even.
/// Dtypes  x f32 | bf16; computed in f32. Exact: the same codes on every machine.
/// Errors  ArgumentError: K above kInt8MaxDepth
Int8Rows quantize_rows_int8(const TensorView& x, const TensorView& factors);

/// A weight W [rows, columns] whose codes are made while it is multiplied:
/// q = round((W * column_factors) * row_factors), in [-127, 127].
struct Int8Weight {
  int64_t rows = 0, columns = 0;
  BlockSource blocks;                     // of f32
  const float* column_factors = nullptr;  // [columns]
  const float* row_factors = nullptr;     // [rows]
};

/// Largest |W * column_factors| of each row: absmax [rows] f32.
void row_absmax_int8(const Int8Weight& weight, float* absmax);

/// c [M,N] (+)= (sum over K of a's codes * q) * scale of a's row * scales [N]; op(q) = q^T (N = W's
/// rows, K = its columns) or q. Dtypes  c f32 | bf16
void gemm_int8(const Int8Rows& a, const Int8Weight& weight, Transpose transpose,
               const TensorView& scales, const TensorView& c, Accumulate accumulate);

/// Whether this machine multiplies 8-bit integers in hardware (AVX512-VNNI); elsewhere the same
/// bits come from 16-bit products, about as fast as f32.
bool has_fast_int8();

}  // namespace shardtune::kernels
