#include "adapters/coft.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "kernels/elementwise.h"

namespace shardtune::adapters {

using kernels::kShardGranule;
using models::UpdatedRange;

namespace {

// Rows that are moved end a hair inside of the ball: PEFT, which looks in each pass, leaves them.
constexpr double kHair = 4e-6;

// The factors of rows with these sums of squares of their triangles; each stands in S twice.
std::vector<float> factors(const std::vector<double>& squares, double eps) {
  const double limit = eps / std::sqrt(static_cast<double>(squares.size()));
  std::vector<float> result;
  for (const double square : squares) {
    const double norm = std::sqrt(2.0 * square);
    result.push_back(norm <= limit ? 1.0f : static_cast<float>((1.0 - kHair) * limit / norm));
  }
  return result;
}

}  // namespace

bool project_rotations(std::span<float> values, int64_t num_rows, double eps) {
  const size_t row = values.size() / static_cast<size_t>(num_rows);
  std::vector<double> squares(static_cast<size_t>(num_rows), 0.0);
  for (size_t i = 0; i < values.size(); ++i)
    squares[i / row] += static_cast<double>(values[i]) * values[i];
  const std::vector<float> by = factors(squares, eps);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] *= by[i / row];
  return std::ranges::any_of(by, [](float factor) { return factor != 1.0f; });
}

// Per chunk the sums of the rows that it has a part of, then per row those of its chunks in order.
std::vector<double> RotationLimit::squares_of(const Matrix& matrix, ParameterId id,
                                              std::span<const UpdatedRange> ranges,
                                              const models::GatherChunks& gather) const {
  const int64_t numel = matrix.num_rows * matrix.row;
  const int64_t chunks = ceil_div(numel, kShardGranule);
  const int64_t per_chunk = std::min(matrix.num_rows, kShardGranule / matrix.row + 2);
  std::vector<double> sums(static_cast<size_t>(chunks * per_chunk), 0.0);
  const auto place = [&](int64_t element) {
    const int64_t chunk = element / kShardGranule;
    const int64_t first_row = chunk * kShardGranule / matrix.row;
    return static_cast<size_t>(chunk * per_chunk + element / matrix.row - first_row);
  };
  for (const UpdatedRange& range : ranges) {
    if (range.id != id)
      continue;
    SHARDTUNE_ASSERT(range.begin % kShardGranule == 0);
    for (int64_t i = 0; i < std::ssize(range.parameter); ++i) {
      const double value = range.parameter[static_cast<size_t>(i)];
      sums[place(range.begin + i)] += value * value;
    }
  }
  const models::ChunkValues values{id, per_chunk, sums};
  gather({&values, 1});
  std::vector<double> squares(static_cast<size_t>(matrix.num_rows), 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * kShardGranule;
    const int64_t end = std::min(numel, begin + kShardGranule);
    for (int64_t r = begin / matrix.row; r <= (end - 1) / matrix.row; ++r)
      squares[static_cast<size_t>(r)] += sums[place(std::max(begin, r * matrix.row))];
  }
  return squares;
}

void RotationLimit::project(std::span<const UpdatedRange> ranges,
                            const models::GatherChunks& gather) {
  for (const auto& [id, matrix] : matrices_) {
    const std::vector<float> by = factors(squares_of(matrix, id, ranges, gather), eps_);
    for (const UpdatedRange& range : ranges) {
      if (range.id != id)
        continue;
      for (int64_t i = 0; i < std::ssize(range.parameter); ++i)
        range.parameter[static_cast<size_t>(i)] *=
            by[static_cast<size_t>((range.begin + i) / matrix.row)];
    }
  }
}

}  // namespace shardtune::adapters
