// Parts of gemm.cpp that its variants share, private to kernels/.
#pragma once

#include <functional>

#include "kernels/gemm_onednn.h"

namespace shardtune::kernels {

/// Cuts c into blocks that depend on the shape alone and runs each on one thread.
void run_blocks(const ProductSpec& whole, const void* a, const void* b, void* c);

/// A product with a decoded panel of b: columns [first_column, first_column + spec.n) of c.
using PanelProduct =
    std::function<void(const ProductSpec& spec, const void* panel, int64_t first_column)>;
/// Decodes b panel by panel, on all threads, and has each multiplied. K at least 1.
void for_panels(const TensorView& a, const BlockSource& b, Transpose transpose_b,
                const TensorView& c, const PanelProduct& multiply);

/// to = from^T; `rows` and `columns` of from.
void copy_transposed(const float* from, int64_t rows, int64_t columns, int64_t from_stride,
                     float* to, int64_t to_stride);

/// x as f32.
Tensor to_float32(const TensorView& x);

}  // namespace shardtune::kernels
