// EVA: A starts with the directions in which the inputs of a linear vary most, the leading right
// singular vectors of its activations around their mean; B at zero, so training starts at the base
// model. They are found by subspace iteration over a few forward passes, so that no matrix [in,in]
// is held. All linears get the rank asked for (rho = 1: no redistribution). Source  Paischer et al.
// 2024, EVA, arXiv:2410.07170; Halko, Martinsson and Tropp 2011
#pragma once

#include <cstdint>
#include <vector>

#include "adapters/adapter.h"

namespace shardtune::adapters {

struct EvaTarget {
  const models::BaseLinear* linear = nullptr;
  int64_t rank = 0;
};

/// For each target A [rank,in], row by row, orthonormal, the largest variance first; the element
/// with the largest magnitude of each row is positive. The same bits on every rank. Collective.
/// Errors  NonFiniteError: activations that are NaN or infinite
std::vector<std::vector<float>> eva_directions(int64_t num_linears,
                                               const std::vector<EvaTarget>& targets,
                                               const InitContext& context);

}  // namespace shardtune::adapters
