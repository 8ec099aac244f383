// Orthogonal rotations of blocks of features, for OFT and BOFT: from trained parameters through
// Cayley's transform to rotations, and rotations applied to activations and weights.
#pragma once

#include <cstdint>
#include <vector>

#include "autograd/tape.h"
#include "core/rng.h"

namespace shardtune::adapters {

/// How a skew-symmetric S becomes a rotation R.
struct Cayley {
  /// 0: exactly, R = (I - S)(I + S)^-1. Else a Neumann series of that many terms, which has the
  /// sign of S the other way: I + 2 S + 2 S^2 + ... + S^(n-1).
  int64_t neumann_terms = 0;
  /// Whether parameters are upper triangles, row by row (OFT: S_ij = v, S_ji = -v), or whole
  /// matrices (BOFT: S = (P - P^T) / 2).
  enum class Parameters { kUpperTriangle, kWholeMatrix } parameters = Parameters::kUpperTriangle;
};

/// Rotations [n, b, b] f32 of parameters [n, b (b - 1) / 2] or n whole matrices.
autograd::Variable cayley(autograd::Tape& tape, const autograd::Variable& parameters,
                          int64_t num_blocks, int64_t block_size, const Cayley& options);

/// Marks for floor(p n) of n blocks, drawn without order.
std::vector<uint8_t> draw_blocks(const CounterRng& rng, int64_t n, double p);

/// The rotations [n, b, b] with those that are marked replaced by no rotation.
autograd::Variable hold_blocks(autograd::Tape& tape, const autograd::Variable& rotations,
                               std::vector<uint8_t> is_held);

/// x [T,in] with each block of `b` neighbouring features multiplied by its rotation: y_k = x_k R_k.
/// One rotation [1, b, b] serves all blocks.
autograd::Variable rotate_blocks(autograd::Tape& tape, const autograd::Variable& x,
                                 const autograd::Variable& rotations);

/// rows [n,in] f32, in place: each block multiplied by its rotation's transpose, so that a linear
/// with these rows does to x what the linear before did to the rotated x.
void rotate_weight_rows(const TensorView& rotations, const TensorView& rows);

}  // namespace shardtune::adapters
