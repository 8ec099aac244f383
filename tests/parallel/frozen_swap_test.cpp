// The store with its frozen bytes on NVMe, at stage 0 and, on several ranks, at stage 3: values at
// every lease, more leases at once than buffers, rows, bytes published again, and bytes of the file
// that somebody else changed (RELIABILITY R24).
#include "parallel/frozen_swap.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <random>

#include "io/swap_file.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"
#include "tests/support/other_writer.h"

namespace shardtune::parallel {
namespace {

using testing::OtherWriter;

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

/// Four units of one part of 50,000 bytes, published twice. On two ranks each holds 25,000 bytes of
/// a unit or, where cuts fall elsewhere, some more.
struct SmallUnits {
  static constexpr int kCount = 4;
  static constexpr int64_t kBytes = 50000;

  SmallUnits(Communicator& comm, ZeroStage stage)
      : file({.folder = std::filesystem::temp_directory_path(),
              .rank = comm.rank(),
              .mode = io::SwapMode::kAuto,
              .wrap = {}}),
        store(comm, stage, {.max_held_bytes = kMaxHeldBytes, .file = &file}),
        region_bytes(round_up(stage == ZeroStage::k3 ? kBytes / 2 : kBytes, io::kIoAlignment)) {
    for (int u = 0; u < kCount; ++u) {
      units.push_back(store.add_unit("layer " + std::to_string(u)));
      ids.push_back(store.declare({"codes " + std::to_string(u),
                                   units.back(),
                                   ParameterKind::kFrozen,
                                   DType::kUInt8,
                                   {kBytes}}));
    }
    publish(1);
    store.seal();
    before = OtherWriter(file).read(0, kCount * region_bytes);
    publish(2);
  }

  void publish(int generation) {
    for (int u = 0; u < kCount; ++u) {
      std::mt19937 random(static_cast<unsigned>(10 * generation + u));
      std::vector<std::byte> bytes(store.is_publisher(ids[static_cast<size_t>(u)]) ? kBytes : 0);
      for (std::byte& byte : bytes)
        byte = static_cast<std::byte>(random());
      store.publish(ids[static_cast<size_t>(u)], bytes);
    }
  }

  /// Leases every unit once.
  void walk() {
    store.begin_walk(units);
    for (const UnitId unit : units)
      const UnitLease lease = store.acquire(unit, Pass::kForward);
    store.end_walk();
  }

  /// Makes the bytes of one unit wrong in the file: a flipped bit, zeros, those of the generation
  /// before, those of another unit.
  void spoil(int kind, std::mt19937& random) const {
    const OtherWriter other(file);
    const auto unit = static_cast<int64_t>(random() % kCount);
    std::vector<std::byte> bytes = other.read(unit * region_bytes, region_bytes);
    if (kind == 0)
      bytes[random() % (kBytes / 2 - 64)] ^= std::byte{1} << (random() % 8);
    else if (kind == 1)
      std::ranges::fill(bytes, std::byte{0});
    else if (kind == 2)
      std::copy_n(before.begin() + unit * region_bytes, region_bytes, bytes.begin());
    else
      bytes = other.read((unit + 1) % kCount * region_bytes, region_bytes);
    other.write(unit * region_bytes, bytes);
  }

  io::SwapFile file;
  ShardedParameterStore store;
  int64_t region_bytes;  // in the file, of this rank
  std::vector<UnitId> units;
  std::vector<ParameterId> ids;
  std::vector<std::byte> before;  // the file at generation 1
};

TEST(FrozenSwap, EveryWrongBlockIsFoundOnEveryRankBeforeItsUse) {
  const int injections = testing::scaled(4000);
  std::atomic<int> found{0};
  for (int i = 0; i < injections; ++i) {
    // Every fourth on two ranks at stage 3, where one's block is wrong and both must know.
    const int ranks = i % 4 == 3 ? 2 : 1;
    run_on_threads(ranks, [&](Communicator& comm) {
      SmallUnits small(comm, ranks == 1 ? ZeroStage::k0 : ZeroStage::k3);
      small.walk();
      std::mt19937 random(static_cast<unsigned>(i));
      if (comm.rank() == i / 4 % ranks)
        small.spoil(i / 8 % 4, random);
      comm.barrier();
      try {
        small.walk();
        ADD_FAILURE() << "injection " << i << " passed unseen";
      } catch (const Error& error) {
        EXPECT_EQ(error.exit_code(), ExitCode::kCorruptBlock) << error.what();
        EXPECT_NE(std::string(error.what()).find("block 0: expected generation 2 with checksum"),
                  std::string::npos)
            << error.what();
        small.store.abandon_walk();
        ++found;
      }
    });
    if (::testing::Test::HasFailure())
      break;
  }
  EXPECT_EQ(found, injections + injections / 4);
}

}  // namespace
}  // namespace shardtune::parallel
