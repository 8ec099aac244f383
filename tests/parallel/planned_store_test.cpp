// What a planned store counts: shares of stages, the buffers of stage 3, bytes between ranks.
#include "parallel/planned_store.h"

#include <gtest/gtest.h>

#include "core/dry_run.h"

namespace shardtune::parallel {
namespace {

constexpr int64_t kCodes = 1 << 20, kScales = 1 << 16, kNorm = 256, kChunk = 3 << 20;
// Two trainables of 3 granules each: 6 chunks of 4,096 elements.
constexpr int64_t kTrainable = 3 * kShardGranule;

/// Two layers of codes, scales, norm and one trainable, and a table of two chunks.
void declare_and_publish(PlannedStore& store) {
  std::vector<ParameterId> frozen;
  const auto declare = [&](const std::string& name, UnitId unit, DType dtype, int64_t count,
                           ParameterId part_of = kNoParameter) {
    frozen.push_back(
        store.declare({name, unit, ParameterKind::kFrozen, dtype, Shape{count}, part_of}));
    return frozen.back();
  };
  for (int chunk = 0; chunk < 2; ++chunk) {
    const std::string name = "table.chunk" + std::to_string(chunk);
    declare(name, store.add_unit(name), DType::kUInt8, kChunk);
  }
  for (int layer = 0; layer < 2; ++layer) {
    const std::string name = "layer" + std::to_string(layer);
    const UnitId unit = store.add_unit(name);
    const ParameterId codes = declare(name + ".codes", unit, DType::kUInt8, kCodes);
    declare(name + ".absmax", unit, DType::kUInt8, kScales, codes);
    declare(name + ".norm", unit, DType::kFloat32, kNorm);
    store.declare(
        {name + ".lora_A", unit, ParameterKind::kTrainable, DType::kFloat32, Shape{kTrainable}});
  }
  for (const ParameterId id : frozen)
    store.publish(id, {});
  store.seal();
}

int64_t num_owned(const PlannedStore& store, int rank) {
  int64_t total = 0;
  for (const int64_t length : store.owned_ranges(rank))
    total += length;
  return total;
}

std::vector<UnitId> walk_of_all() { return {UnitId{0}, UnitId{1}, UnitId{2}, UnitId{3}}; }

TEST(PlannedStore, HoldsEverythingAtStages0To2) {
  for (const ZeroStage stage : {ZeroStage::k0, ZeroStage::k1, ZeroStage::k2}) {
    DryRun dry_run;
    PlannedStore store(stage, 0, 2);
    declare_and_publish(store);
    EXPECT_EQ(store.bytes().codes, 2 * kCodes + 2 * kChunk);
    EXPECT_EQ(store.bytes().scales, 2 * kScales);
    EXPECT_EQ(store.bytes().dense, 2 * 4 * kNorm);
    EXPECT_EQ(store.bytes().master, 2 * 4 * kTrainable);
    EXPECT_EQ(store.bytes().bf16, 2 * 2 * kTrainable);
    EXPECT_EQ(store.bytes().gather, 0);
    EXPECT_EQ(num_owned(store, 0), (stage == ZeroStage::k0 ? 2 : 1) * kTrainable);
    EXPECT_EQ(dry_run.pool().bytes_in_use(), store.bytes().pooled());
  }
}

TEST(PlannedStore, HoldsSharesAndGatherBuffersAtStage3) {
  DryRun dry_run;
  PlannedStore store(ZeroStage::k3, 1, 4);
  declare_and_publish(store);
  EXPECT_EQ(store.bytes().base(), (2 * kCodes + 2 * kChunk + 2 * kScales + 2 * 4 * kNorm) / 4);
  // 6 chunks over 4 ranks: rank 1 has the second and third.
  EXPECT_EQ(num_owned(store, 1), kShardGranule);
  // The largest unit is a chunk of the table.
  const int num_buffers = 1 + gather_ahead(kChunk);
  EXPECT_EQ(store.bytes().gather, num_buffers * kChunk);
  // They serve the unit at work and those ahead.
  const int64_t before = dry_run.pool().bytes_in_use();
  store.begin_walk(walk_of_all());
  {
    const UnitLease first = store.acquire(UnitId{0}, Pass::kForward);
    EXPECT_EQ(dry_run.pool().bytes_in_use(), before);
    const UnitLease second = store.acquire(UnitId{1}, Pass::kForward);
    EXPECT_EQ(dry_run.pool().bytes_in_use(), before);
  }
  store.end_walk();
  EXPECT_EQ(dry_run.pool().bytes_in_use(), before);
}

TEST(PlannedStore, GathersEveryUnitOfAWalkOnce) {
  DryRun dry_run;
  PlannedStore store(ZeroStage::k3, 1, 4);
  declare_and_publish(store);
  store.begin_walk(walk_of_all());
  store.end_walk();
  const int64_t base = 4 * store.bytes().base();
  const Traffic units = store.traffic().units;
  EXPECT_EQ(units.received, base * 3 / 4 + 4 * (2 * kTrainable - kShardGranule));
  EXPECT_EQ(units.sent, 3 * (base / 4 + 4 * kShardGranule));
}

TEST(PlannedStore, ReadsUnitsAheadBesideThePool) {
  DryRun dry_run;
  PlannedStore store(ZeroStage::k0, 0, 1, FrozenPlace::kNvme);
  declare_and_publish(store);
  EXPECT_EQ(store.bytes().base(), 0);
  // A norm takes a page of the file.
  EXPECT_EQ(store.swap_bytes(0), 2 * (kCodes + kScales + 4096) + 2 * kChunk);
  constexpr int64_t kBuffers = (kNvmeReadAhead + 1) * kChunk;
  EXPECT_EQ(store.bytes().read_ahead, kBuffers);
  EXPECT_EQ(dry_run.bytes_now() - dry_run.pool().resident_bytes(), kBuffers);
  store.begin_walk(walk_of_all());
  {
    const UnitLease first = store.acquire(UnitId{0}, Pass::kForward);
    const UnitLease second = store.acquire(UnitId{1}, Pass::kForward);
    // Both layers are read ahead while both chunks stay.
    EXPECT_EQ(dry_run.bytes_now() - dry_run.pool().resident_bytes(), kBuffers);
    const UnitLease third = store.acquire(UnitId{2}, Pass::kForward);
    const UnitLease fourth = store.acquire(UnitId{3}, Pass::kForward);
  }
  store.end_walk();
  EXPECT_EQ(dry_run.bytes_now() - dry_run.pool().resident_bytes(), kBuffers);
  EXPECT_EQ(store.traffic().units_read, store.swap_bytes(0));
}

TEST(PlannedStore, SendsItsLeafWithoutItsShardAndItsShardToAll) {
  DryRun dry_run;
  PlannedStore store(ZeroStage::k2, 0, 3);
  declare_and_publish(store);
  store.begin_micro_batch();
  store.end_round(2);
  EXPECT_EQ(store.traffic().gradients.sent, 4 * (2 * kTrainable - 2 * kShardGranule));
  EXPECT_EQ(store.traffic().gradients.received, 4 * 2 * kShardGranule);
  store.publish_updates();
  EXPECT_EQ(store.traffic().weights.sent, 4 * 2 * 2 * kShardGranule);
  EXPECT_EQ(store.traffic().weights.received, 4 * (2 * kTrainable - 2 * kShardGranule));
  // Of several ranks to the others: one rank's leaf; two ranks of a host to the third on another,
  // the second of which has a leaf only in the first round.
  EXPECT_EQ(store.sent_leaves(1, 3), 4 * (2 * kTrainable - 2 * kShardGranule));
  EXPECT_EQ(store.sent_shards(1, 2), 4 * 2 * 2 * kShardGranule);
  EXPECT_EQ(store.sent_leaves(2, 3), 2 * 4 * 2 * kShardGranule);
  EXPECT_EQ(store.sent_leaves(2, 1), 4 * 2 * kShardGranule);
  EXPECT_EQ(store.take_brought().units, 0);
}

TEST(PlannedStore, CountsTheSumsOfABinaryCounter) {
  EXPECT_EQ(PlannedStore::num_slots(0), 0);
  EXPECT_EQ(PlannedStore::num_slots(4), 1);
  EXPECT_EQ(PlannedStore::num_slots(7), 3);
  DryRun dry_run;
  PlannedStore store(ZeroStage::k2, 0, 1);
  declare_and_publish(store);
  const int64_t before = dry_run.pool().bytes_in_use();
  store.begin_step(3);
  for (int m = 0; m < 3; ++m) {
    store.begin_micro_batch();
    store.end_round(1);
  }
  EXPECT_EQ(dry_run.pool().bytes_in_use() - before, 2 * 4 * 2 * kTrainable);
  store.finish_gradients();
  EXPECT_EQ(dry_run.pool().bytes_in_use() - before, 4 * 2 * kTrainable);
}

}  // namespace
}  // namespace shardtune::parallel
