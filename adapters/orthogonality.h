// How far the rows or columns of a matrix are from an orthonormal set, as a loss of its own.
#pragma once

#include "autograd/tape.h"

namespace shardtune::adapters {

enum class Along { kRows, kColumns };

/// weight * ||P P^T - I||_F of the rows of P, or weight * ||P^T P - I||_F of its columns: [1] f32.
/// Exact   the same bits for any number of threads; the norm is summed in fp64
/// The gradient at an orthonormal P, where the norm has none, is 0, as torch has it.
autograd::Variable orthogonality_loss(autograd::Tape& tape, const autograd::Variable& p,
                                      Along along, float weight);

}  // namespace shardtune::adapters
