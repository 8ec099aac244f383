// Rows of numbers over steps in bounded memory, for drawing: when there are too many, neighbours
// become one row that keeps mean, smallest and largest of each column, so that no peak is lost.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shardtune::trainer {

/// One column of one row; count 0: no value.
struct ThinnedCell {
  int64_t count = 0;
  double mean = 0.0;
  double min = 0.0;
  double max = 0.0;
};

struct ThinnedRow {
  double first_x = 0.0;
  double last_x = 0.0;
  int64_t count = 0;
  std::vector<ThinnedCell> cells;
};

class ThinnedRows {
 public:
  static constexpr size_t kMaxRows = 1024;

  explicit ThinnedRows(size_t num_columns) : num_columns_(num_columns) {}

  /// A value that is not finite is absent. x does not fall.
  void add(double x, std::span<const double> values);

  const std::vector<ThinnedRow>& rows() const { return rows_; }
  /// How many of what was added stand in one row; the last may hold fewer.
  int64_t per_row() const { return per_row_; }
  /// Over everything added.
  ThinnedCell total(size_t column) const;

 private:
  void halve();

  size_t num_columns_;
  int64_t per_row_ = 1;
  std::vector<ThinnedRow> rows_;
};

}  // namespace shardtune::trainer
