#include "trainer/thinned_rows.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace shardtune::trainer {

namespace {

void merge(ThinnedCell& into, const ThinnedCell& cell) {
  if (cell.count == 0)
    return;
  if (into.count == 0) {
    into = cell;
    return;
  }
  into.min = std::min(into.min, cell.min);
  into.max = std::max(into.max, cell.max);
  const double share =
      static_cast<double>(cell.count) / static_cast<double>(into.count + cell.count);
  into.mean += (cell.mean - into.mean) * share;
  into.count += cell.count;
}

void merge(ThinnedRow& into, const ThinnedRow& row) {
  into.last_x = row.last_x;
  into.count += row.count;
  for (size_t c = 0; c < into.cells.size(); ++c)
    merge(into.cells[c], row.cells[c]);
}

}  // namespace

void ThinnedRows::add(double x, std::span<const double> values) {
  SHARDTUNE_ASSERT(values.size() == num_columns_);
  ThinnedRow row{x, x, 1, {}};
  for (const double value : values) {
    // Beyond any measured figure; a difference of two such values is still finite.
    const bool is_there = std::isfinite(value) && std::abs(value) < 1e300;
    row.cells.push_back(is_there ? ThinnedCell{1, value, value, value} : ThinnedCell{});
  }
  if (!rows_.empty() && rows_.back().count < per_row_) {
    merge(rows_.back(), row);
    return;
  }
  if (rows_.size() == kMaxRows)
    halve();
  rows_.push_back(std::move(row));
}

void ThinnedRows::halve() {
  std::vector<ThinnedRow> halved;
  halved.reserve(kMaxRows);
  for (size_t i = 0; i + 1 < rows_.size(); i += 2) {
    halved.push_back(std::move(rows_[i]));
    merge(halved.back(), rows_[i + 1]);
  }
  rows_ = std::move(halved);
  per_row_ *= 2;
}

ThinnedCell ThinnedRows::total(size_t column) const {
  ThinnedCell total;
  for (const ThinnedRow& row : rows_)
    merge(total, row.cells[column]);
  return total;
}

}  // namespace shardtune::trainer
