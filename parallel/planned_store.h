// What ShardedParameterStore holds and moves on one rank, without other ranks and without bytes:
// for a dry run (core/dry_run.h), which counts it. Units go through the same walk as in a run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/binary_counter.h"
#include "parallel/planned_residency.h"
#include "parallel/sharded_store.h"
#include "parallel/unit_walk.h"

namespace shardtune::parallel {

class PlannedStore : public ParameterStore {
 public:
  PlannedStore(ZeroStage stage, int rank, int world_size,
               FrozenPlace frozen_place = FrozenPlace::kMemory)
      : stage_(stage),
        rank_(rank),
        table_(world_size),
        residency_(table_, stage, rank, frozen_place),
        walk_(table_, residency_) {}

  // --- ParameterStore: nothing is read (is_publisher is false) and nothing is sent ---
  UnitId add_unit(std::string name) override { return table_.add_unit(std::move(name)); }
  ParameterId declare(ParameterSpec spec) override { return table_.declare(std::move(spec)); }
  bool is_publisher(ParameterId id) const override { return false; }
  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  UnitLease acquire(UnitId unit, Pass pass) override;
  void fetch_rows(std::span<const RowFetch> fetches) override { walk_.fetch_rows(fetches); }
  void begin_walk(std::span<const UnitId> units) override { walk_.begin(units); }
  void end_walk() override { walk_.end(); }
  int64_t max_held_bytes() const override { return residency_.max_held_bytes(); }
  int64_t num_parameters() const override { return table_.num_parameters(); }
  const ParameterSpec& spec(ParameterId id) const override { return table_.at(id).spec; }
  ParameterId find(std::string_view name) const override { return table_.find(name); }
  TensorView value(ParameterId id) const override { return residency_.value(id); }
  TensorView value_bf16(ParameterId id) const override { return residency_.value_bf16(id); }
  void grad(ParameterId id, const TensorView& leaf) override {}

  // --- As the trainer calls them on the real one ---
  void seal();
  /// Whether this rank would be the publisher, which a plan has none of.
  bool would_publish(ParameterId id) const { return table_.at(id).publisher == rank_; }
  void begin_step(int64_t num_micro_batches);
  void begin_micro_batch();
  /// `num_leaves`: micro-batches of this round over all ranks, one of them this rank's.
  void end_round(int64_t num_leaves);
  void finish_gradients();
  void publish_updates();
  void cancel_step();

  /// Sums of shards that the counter holds after `num_leaves` leaves.
  static int num_slots(int64_t num_leaves);

  const ParameterBytes& bytes() const { return residency_.bytes(); }
  /// Base and its buffers while parameters are published.
  int64_t loading_bytes() const { return bytes().base() + residency_.publishing_bytes(); }
  /// Bytes of the largest tensor published since the last call: what its loader held beside it.
  int64_t take_largest_published();
  int64_t num_trainable_elements() const;
  /// Elements of every range whose states a rank keeps.
  std::vector<int64_t> owned_ranges(int rank) const;
  /// Bytes of a rank's swap file of the frozen base.
  int64_t swap_bytes(int rank) const { return residency_.swap_bytes(rank); }
  /// The most bytes of other ranks' memory that this rank mapped at once.
  int64_t peak_foreign_bytes() const { return residency_.peak_foreign_bytes(); }
  /// Moved so far.
  StoreTraffic traffic() const;
  /// Since the last call.
  BroughtBytes take_brought() { return residency_.take_brought(); }

  // Bytes that the ranks [0, num_ranks) send to all others: of leaves in a round that has
  // `num_leaves`, and in one all-gather of shards to so many groups of other ranks (each rank, or
  // each host).
  int64_t sent_leaves(int num_ranks, int64_t num_leaves) const;
  int64_t sent_shards(int num_ranks, int64_t num_groups) const;

 protected:
  void release(UnitId unit) noexcept override { walk_.release(unit); }

 private:
  struct KeepEarlier {
    Tensor operator()(Tensor earlier, Tensor later) const { return earlier; }
  };

  const FlatLayout::Shard& shard() const { return flat_.shard(rank_); }
  void count_shards_to_all(Traffic& traffic) const;

  ZeroStage stage_;
  int rank_;
  ParameterTable table_;
  PlannedResidency residency_;
  UnitWalk walk_;
  ShardLayout shards_;
  FlatLayout flat_;
  int64_t published_ = 0;  // bytes of the tensor that is being published
  int64_t largest_published_ = 0;
  Tensor leaf_, gradient_;
  BinaryCounter<Tensor, KeepEarlier> counter_;
  StoreTraffic traffic_;  // without the residency's
};

}  // namespace shardtune::parallel
