// Differentiable operations on small matrices: what adapters compute their changes of a weight or
// an activation from. Results and gradients are the same for any number of threads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "autograd/tape.h"
#include "kernels/elementwise.h"

namespace shardtune::autograd {

/// a [M,K] * op(b), op(b) = b [K,N] or b^T with b [N,K], of `a`'s dtype (b is rounded to it), in
/// that dtype or in `result`.
/// Products that reduce over M (the gradient of b) are cut as in DESIGN 8.1.
Variable matmul(Tape& tape, const Variable& a, const Variable& b, kernels::Transpose transpose_b,
                std::optional<DType> result = std::nullopt);

/// The same elements under another shape (copied).
Variable reshape(Tape& tape, const Variable& x, Shape shape);

/// Columns [begin, end) of x [M,N].
Variable slice_columns(Tape& tape, const Variable& x, int64_t begin, int64_t end);

/// [M, N / group]: scale * the sum of each group of neighbouring columns of x [M,N], in x's dtype.
Variable sum_column_groups(Tape& tape, const Variable& x, int64_t group, float scale);

/// [x, y]: the columns of y [M,K] behind those of x [M,N], of one dtype.
Variable append_columns(Tape& tape, const Variable& x, const Variable& y);

/// Rows of the given indices, in their order: [rows.size(), N] of x [M,N]. An index may repeat; its
/// gradients are added in order.
Variable gather_rows(Tape& tape, const Variable& x, std::vector<int32_t> rows);

/// x [M,N] with row rows[i] replaced by row i of y. Rows of x that are replaced get no gradient.
Variable place_rows(Tape& tape, const Variable& x, const Variable& y, std::vector<int32_t> rows);

/// y [M,N] + bias, a Variable of N elements, in y's dtype.
Variable add_row(Tape& tape, const Variable& y, const Variable& bias);

/// Kronecker product of a [m,n] and b [p,q], both f32: [m p, n q].
Variable kronecker(Tape& tape, const Variable& a, const Variable& b);

}  // namespace shardtune::autograd
