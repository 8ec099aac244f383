// COFT: the parameters of each rotation stay within a ball, ||S|| <= eps / sqrt(number of
// rotations), S being the skew-symmetric matrix of an upper triangle; those outside are moved to
// its surface, after each step and when they are read from a folder. Source  Qiu et al. 2023, OFT,
// arXiv:2306.07280
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "models/hooks.h"

namespace shardtune::adapters {

/// Moves the rows of [num_rows, row] into the ball; whether any had to be moved.
bool project_rotations(std::span<float> values, int64_t num_rows, double eps);

/// The same for sharded parameters.
class RotationLimit {
 public:
  explicit RotationLimit(double eps) : eps_(eps) {}
  void add(ParameterId id, int64_t num_rows, int64_t row) { matrices_[id] = {num_rows, row}; }

  /// Moves the rows that the ranges are a part of: the same values on any ranks. Collective.
  void project(std::span<const models::UpdatedRange> ranges, const models::GatherChunks& gather);

 private:
  struct Matrix {
    int64_t num_rows = 0;
    int64_t row = 0;  // elements
  };
  std::vector<double> squares_of(const Matrix& matrix, ParameterId id,
                                 std::span<const models::UpdatedRange> ranges,
                                 const models::GatherChunks& gather) const;

  double eps_;
  std::map<ParameterId, Matrix> matrices_;
};

}  // namespace shardtune::adapters
