// The store with its frozen bytes on NVMe, at stage 0 and, on several ranks, at stage 3: values at
// every lease, more leases at once than buffers, rows, and bytes published again.
#include "parallel/frozen_swap.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "io/swap_file.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"

namespace shardtune::parallel {
namespace {

constexpr int kUnits = 5;
constexpr int64_t kRows = 300;
constexpr int64_t kColumns = 1024;  // a unit takes more than one block

float value_of(int unit, int64_t i, int generation) {
  return static_cast<float>(unit * 1000000 + i) + 0.25f * static_cast<float>(generation);
}

struct SwappedUnits {
  SwappedUnits(Communicator& comm, ZeroStage stage, io::SwapMode mode)
      : file({.folder = std::filesystem::temp_directory_path(),
              .rank = comm.rank(),
              .mode = mode,
              .wrap = {}}),
        store(comm, stage, {.max_held_bytes = kMaxHeldBytes, .file = &file}) {
    for (int u = 0; u < kUnits; ++u) {
      const std::string name = "unit" + std::to_string(u);
      units.push_back(store.add_unit(name));
      tables.push_back(store.declare({name + ".weight",
                                      units.back(),
                                      ParameterKind::kFrozen,
                                      DType::kFloat32,
                                      {kRows, kColumns}}));
      biases.push_back(store.declare(
          {name + ".bias", units.back(), ParameterKind::kFrozen, DType::kFloat32, {u + 1}}));
    }
    for (int u = 0; u < kUnits; ++u) {
      publish(tables[static_cast<size_t>(u)], u, kRows * kColumns, 0);
      publish(biases[static_cast<size_t>(u)], u, u + 1, 0);
    }
    store.seal();
  }

  void publish(ParameterId id, int unit, int64_t count, int generation) {
    std::vector<float> values;
    for (int64_t i = 0; store.is_publisher(id) && i < count; ++i)
      values.push_back(value_of(unit, i, generation));
    store.publish(id, std::as_bytes(std::span(values)));
  }

  void expect_values(int unit, int table_generation) const {
    const auto u = static_cast<size_t>(unit);
    const auto table = store.value(tables[u]).span<const float>();
    for (size_t i = 0; i < table.size(); ++i)
      ASSERT_EQ(table[i], value_of(unit, static_cast<int64_t>(i), table_generation)) << unit;
    const auto bias = store.value(biases[u]).span<const float>();
    for (size_t i = 0; i < bias.size(); ++i)
      ASSERT_EQ(bias[i], value_of(unit, static_cast<int64_t>(i), 0)) << unit;
  }

  /// Forward and backward, one unit at a time; then all of them leased together.
  void walk_all(int generation) {
    std::vector<UnitId> order = units;
    order.insert(order.end(), units.rbegin() + 1, units.rend());
    store.begin_walk(order);
    for (const UnitId unit : order) {
      const UnitLease lease = store.acquire(unit, Pass::kForward);
      expect_values(static_cast<int>(unit), generation);
    }
    store.end_walk();
    store.begin_walk(units);
    std::vector<UnitLease> leases;
    for (const UnitId unit : units)
      leases.push_back(store.acquire(unit, Pass::kForward));
    for (const UnitId unit : units)
      expect_values(static_cast<int>(unit), generation);
    leases.clear();
    store.end_walk();
  }

  void expect_rows(int generation) {
    const std::vector<int32_t> rows = {0, 299, 7, 7, 150};
    std::vector<float> first(rows.size() * kColumns);
    std::vector<float> last(rows.size() * kColumns);
    const RowFetch fetches[] = {
        {tables[0], rows, std::as_writable_bytes(std::span(first))},
        {tables[kUnits - 1], rows, std::as_writable_bytes(std::span(last))}};
    store.fetch_rows(fetches);
    for (size_t r = 0; r < rows.size(); ++r) {
      for (int64_t c = 0; c < kColumns; ++c) {
        const size_t i = r * kColumns + static_cast<size_t>(c);
        ASSERT_EQ(first[i], value_of(0, rows[r] * kColumns + c, generation));
        ASSERT_EQ(last[i], value_of(kUnits - 1, rows[r] * kColumns + c, generation));
      }
    }
  }

  io::SwapFile file;
  ShardedParameterStore store;
  std::vector<UnitId> units;
  std::vector<ParameterId> tables, biases;
};

TEST(FrozenSwap, UnitsComeBackAtEveryStageAlsoWhenPublishedAgain) {
  for (const io::SwapMode mode : {io::SwapMode::kAuto, io::SwapMode::kBuffered}) {
    for (const int ranks : {1, 3}) {
      for (const ZeroStage stage : {ZeroStage::k0, ZeroStage::k3}) {
        run_on_threads(ranks, [&](Communicator& comm) {
          SwappedUnits swapped(comm, stage, mode);
          for (int generation = 0; generation < 2; ++generation) {
            for (int u = 0; generation > 0 && u < kUnits; ++u)
              swapped.publish(swapped.tables[static_cast<size_t>(u)], u, kRows * kColumns,
                              generation);
            swapped.expect_rows(generation);
            swapped.walk_all(generation);
          }
          EXPECT_EQ(swapped.store.memory().base_bytes, 0);
        });
      }
    }
  }
}

}  // namespace
}  // namespace shardtune::parallel
