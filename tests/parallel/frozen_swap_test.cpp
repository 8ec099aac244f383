// The store with its frozen bytes on NVMe, at stage 0 and, on several ranks, at stage 3: values at
// every lease, more leases at once than buffers, rows, bytes published again, and bytes of the file
// that somebody else changed (RELIABILITY R24).
#include "parallel/frozen_swap.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <random>

#include "core/checked.h"
#include "io/swap_file.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/frozen_units.h"
#include "tests/support/other_writer.h"

namespace shardtune::parallel {
namespace {

using testing::OtherWriter;

constexpr int kUnits = 5;
constexpr int64_t kRows = 300;
constexpr int64_t kColumns = 1024;  // a unit takes more than one block

struct SwappedUnits {
  SwappedUnits(Communicator& comm, ZeroStage stage, io::SwapMode mode)
      : file({.folder = std::filesystem::temp_directory_path(),
              .rank = comm.rank(),
              .mode = mode,
              .wrap = {}}),
        store(comm, stage, {.max_held_bytes = kMaxHeldBytes, .file = &file}),
        frozen(store, kUnits, kRows, kColumns) {}

  /// Forward and backward, one unit at a time; then all of them leased together.
  void walk_all(int generation) {
    std::vector<UnitId> order = frozen.units;
    order.insert(order.end(), frozen.units.rbegin() + 1, frozen.units.rend());
    store.begin_walk(order);
    for (const UnitId unit : order) {
      const UnitLease lease = store.acquire(unit, Pass::kForward);
      frozen.expect_values(static_cast<int>(unit), generation);
    }
    store.end_walk();
    store.begin_walk(frozen.units);
    std::vector<UnitLease> leases;
    for (const UnitId unit : frozen.units)
      leases.push_back(store.acquire(unit, Pass::kForward));
    for (const UnitId unit : frozen.units)
      frozen.expect_values(static_cast<int>(unit), generation);
    leases.clear();
    store.end_walk();
  }

  io::SwapFile file;
  ShardedParameterStore store;
  FrozenUnits frozen;
};

TEST(FrozenSwap, UnitsComeBackAtEveryStageAlsoWhenPublishedAgain) {
  for (const io::SwapMode mode : {io::SwapMode::kAuto, io::SwapMode::kBuffered}) {
    for (const int ranks : {1, 3}) {
      for (const ZeroStage stage : {ZeroStage::k0, ZeroStage::k3}) {
        run_on_threads(ranks, [&](Communicator& comm) {
          SwappedUnits swapped(comm, stage, mode);
          for (int generation = 0; generation < 2; ++generation) {
            if (generation > 0)
              swapped.frozen.publish_tables(generation);
            swapped.frozen.expect_rows(generation);
            swapped.walk_all(generation);
          }
          EXPECT_EQ(swapped.store.memory().base_bytes, 0);
        });
      }
    }
  }
}

// Rows that begin and end inside blocks, more blocks than the buffer of rows holds.
TEST(FrozenSwap, RowsAreReadByTheirBlocks) {
  constexpr int64_t kTableRows = 3000, kRowBytes = 1537;
  constexpr int64_t kTableBytes = kTableRows * kRowBytes;
  io::SwapFile file({.folder = std::filesystem::temp_directory_path(),
                     .rank = 0,
                     .mode = io::SwapMode::kAuto,
                     .wrap = {}});
  FrozenSwap swap(file);
  const FrozenSwap::Part parts[] = {{"first", 5000}, {"table", kTableBytes}};
  swap.place(UnitId{0}, parts);
  std::mt19937 random(1);
  std::vector<std::byte> table(static_cast<size_t>(kTableBytes));
  for (std::byte& byte : table)
    byte = static_cast<std::byte>(random());
  swap.store(UnitId{0}, 0, io::AlignedBuffer(5000));
  io::AlignedBuffer bytes(kTableBytes);
  std::copy(table.begin(), table.end(), bytes.bytes().begin());
  swap.store(UnitId{0}, 1, std::move(bytes));
  swap.seal(1);
  const auto check = [&](const std::vector<int32_t>& rows) {
    std::vector<std::byte> out(rows.size() * kRowBytes);
    swap.read_rows(UnitId{0}, 1, kRowBytes, {ParameterId{}, rows, out});
    for (size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(
          std::memcmp(out.data() + i * kRowBytes, table.data() + rows[i] * kRowBytes, kRowBytes), 0)
          << rows[i];
  };
  const std::vector<int32_t> few = {0, 42, 43, 1500, 2999};
  std::vector<int32_t> all(kTableRows);
  for (int32_t i = 0; i < kTableRows; ++i)
    all[static_cast<size_t>(i)] = i;
  check(few);
  // Row 42 goes from block 0 to block 1, the last block is cut at 4 KiB.
  EXPECT_EQ(blocks_of_rows(few, kRowBytes), (std::vector<int64_t>{0, 1, 35, 70}));
  const int64_t kLast = round_up(kTableBytes, io::kIoAlignment) - 70 * (64 << 10);
  EXPECT_EQ(swap.read_bytes(), 3 * (64 << 10) + kLast);
  check(all);
  swap.acquire(UnitId{0});
  const int64_t before = swap.read_bytes();
  check(few);
  EXPECT_EQ(swap.read_bytes(), before);
  swap.release(UnitId{0});
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
