// EVA: A starts with the directions in which the inputs of a linear vary most, the leading right
// singular vectors of its activations around their mean; B at zero, so training starts at the base
// model. They are found by subspace iteration over a few forward passes, so that no matrix [in,in]
// is held. Linears that take the same inputs share one search. Source  Paischer et al. 2024, EVA,
// arXiv:2410.07170; Halko, Martinsson and Tropp 2011
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "adapters/adapter.h"

namespace shardtune::adapters {

struct EvaTarget {
  const models::BaseLinear* linear = nullptr;
  int64_t rank = 0;  // directions wanted
};

/// Of the inputs of one linear: as many as the linear that wants most of them asks for.
struct EvaDirections {
  /// [n,in], row by row, orthonormal, the largest variance first; the element with the largest
  /// magnitude of each row is positive.
  std::vector<float> rows;
  std::vector<double> variances;  // sum over the tokens along each row
  double variance = 0.0;          // of the inputs, in all directions

  /// PEFT's explained_variance_ratio.
  double ratio(size_t row) const { return variance > 0.0 ? variances[row] / variance : 0.0; }
};

/// For each target; the same object for those that take the same inputs. The same bits on every
/// rank. Collective. `use_label_mask`: only tokens that are trained themselves are looked at.
/// In a dry run one pass is walked, and nothing found.
/// Errors  NonFiniteError: activations that are NaN or infinite; ConfigError: a sample with fewer
///         tokens than directions
std::vector<std::shared_ptr<const EvaDirections>> eva_directions(
    int64_t num_linears, const std::vector<EvaTarget>& targets, const InitContext& context,
    bool use_label_mask);

/// The first `rank` rows of [n,in]; with `whiten` each divided by the root of its singular value.
std::vector<float> eva_start_of(const EvaDirections& found, int64_t rank, int64_t in, bool whiten);

}  // namespace shardtune::adapters
