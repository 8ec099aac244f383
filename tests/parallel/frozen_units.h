// Units of one frozen matrix and one vector each, whose values tell unit, place and how often they
// were published: for tests of where frozen bytes live.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "parallel/sharded_store.h"

namespace shardtune::parallel {

inline float value_of(int unit, int64_t i, int generation) {
  return static_cast<float>(unit * 1000000 + i) + 0.25f * static_cast<float>(generation);
}

class FrozenUnits {
 public:
  /// Declares `num_units` with a matrix [rows, columns] each, publishes generation 0 and seals. The
  /// store outlives this object.
  FrozenUnits(ShardedParameterStore& store, int num_units, int64_t rows, int64_t columns)
      : store_(store), rows_(rows), columns_(columns) {
    for (int u = 0; u < num_units; ++u) {
      const std::string name = "unit" + std::to_string(u);
      units.push_back(store.add_unit(name));
      tables.push_back(declare(name + ".weight", ParameterKind::kFrozen, {rows, columns}));
      biases.push_back(declare(name + ".bias", ParameterKind::kFrozen, {u + 1}));
      declare(name + ".lora_A", ParameterKind::kTrainable, {4});
    }
    publish_tables(0);
    for (int u = 0; u < num_units; ++u)
      publish(biases[static_cast<size_t>(u)], u, u + 1, 0);
    store.seal();
  }

  void publish_tables(int generation) {
    for (size_t u = 0; u < tables.size(); ++u)
      publish(tables[u], static_cast<int>(u), rows_ * columns_, generation);
  }

  /// Of a leased unit.
  void expect_values(int unit, int generation) const {
    const auto u = static_cast<size_t>(unit);
    const auto table = store_.value(tables[u]).span<const float>();
    for (size_t i = 0; i < table.size(); ++i)
      ASSERT_EQ(table[i], value_of(unit, static_cast<int64_t>(i), generation)) << unit;
    const auto bias = store_.value(biases[u]).span<const float>();
    for (size_t i = 0; i < bias.size(); ++i)
      ASSERT_EQ(bias[i], value_of(unit, static_cast<int64_t>(i), 0)) << unit;
  }

  /// Rows of the first and the last matrix in one call, some of them twice.
  void expect_rows(int generation) {
    const auto end = static_cast<int32_t>(rows_);
    const std::vector<int32_t> wanted = {0, end - 1, 7, 7, end / 2};
    const int last = static_cast<int>(tables.size()) - 1;
    std::vector<float> first_rows(wanted.size() * static_cast<size_t>(columns_));
    std::vector<float> last_rows(first_rows.size());
    const RowFetch fetches[] = {
        {tables.front(), wanted, std::as_writable_bytes(std::span(first_rows))},
        {tables.back(), wanted, std::as_writable_bytes(std::span(last_rows))}};
    store_.fetch_rows(fetches);
    for (size_t r = 0; r < wanted.size(); ++r) {
      for (int64_t c = 0; c < columns_; ++c) {
        const size_t i = r * static_cast<size_t>(columns_) + static_cast<size_t>(c);
        ASSERT_EQ(first_rows[i], value_of(0, wanted[r] * columns_ + c, generation));
        ASSERT_EQ(last_rows[i], value_of(last, wanted[r] * columns_ + c, generation));
      }
    }
  }

  std::vector<UnitId> units;
  std::vector<ParameterId> tables, biases;

 private:
  ParameterId declare(std::string name, ParameterKind kind, Shape shape) {
    return store_.declare({std::move(name), units.back(), kind, DType::kFloat32, shape});
  }
  void publish(ParameterId id, int unit, int64_t count, int generation) {
    std::vector<float> values;
    for (int64_t i = 0; store_.is_publisher(id) && i < count; ++i)
      values.push_back(value_of(unit, i, generation));
    store_.publish(id, std::as_bytes(std::span(values)));
  }

  ShardedParameterStore& store_;
  int64_t rows_;
  int64_t columns_;
};

}  // namespace shardtune::parallel
