// What ShardedParameterStore holds on one rank, buffer by buffer in the same order, without other
// ranks and without bytes: for a dry run (core/dry_run.h), which counts them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/binary_counter.h"
#include "parallel/gradient_accumulator.h"
#include "parallel/sharded_store.h"

namespace shardtune::parallel {

/// Bytes of the parameters that a rank holds, by what they are.
struct ParameterBytes {
  int64_t codes = 0;   // quantised values
  int64_t scales = 0;  // absmax and what else belongs to codes
  int64_t dense = 0;   // frozen and not quantised: norms, embedding, head
  int64_t master = 0;  // trainables in fp32
  int64_t bf16 = 0;    // their copies for products
  int64_t gather = 0;  // the two buffers for units under way, gathered or read from NVMe
  int64_t shared = 0;  // of the base, in memory that all ranks of a host map; no buffer of the pool
  int64_t base() const { return codes + scales + dense; }
  int64_t pooled() const { return base() - shared + master + bf16 + gather; }
};

/// What the walks over one micro-batch bring to a rank at stage 3.
struct BroughtBytes {
  int64_t units = 0;  // all ranks' parts of every unit, its own too
  int64_t rows = 0;   // of tables, with the requests for them
};

/// Where frozen bytes live between their uses; kHost: in memory, once for the ranks of a host.
enum class FrozenPlace { kMemory, kHost, kNvme };

/// Zeros without memory behind them, for views of which a dry run reads a number here and there.
class AddressRange {
 public:
  AddressRange() = default;
  explicit AddressRange(int64_t num_bytes);
  AddressRange(AddressRange&& other) noexcept;
  AddressRange& operator=(AddressRange&& other) noexcept;
  ~AddressRange();
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  size_t num_bytes_ = 0;
};

class PlannedStore : public ParameterStore {
 public:
  PlannedStore(ZeroStage stage, int rank, int world_size,
               FrozenPlace frozen_place = FrozenPlace::kMemory)
      : stage_(stage), rank_(rank), world_size_(world_size), frozen_place_(frozen_place) {}

  // --- ParameterStore: nothing is read (is_publisher is false) and nothing is sent ---
  UnitId add_unit(std::string name) override;
  ParameterId declare(ParameterSpec spec) override;
  bool is_publisher(ParameterId id) const override { return false; }
  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  UnitLease acquire(UnitId unit, Pass pass) override;
  void fetch_rows(std::span<const RowFetch> fetches) override;
  void begin_walk(std::span<const UnitId> units) override {}
  void end_walk() override {}
  int64_t max_held_bytes() const override { return brings_units() ? kMaxHeldBytes : INT64_MAX; }
  int64_t num_parameters() const override { return static_cast<int64_t>(parameters_.size()); }
  const ParameterSpec& spec(ParameterId id) const override { return at(id).spec; }
  ParameterId find(std::string_view name) const override;
  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override;
  void grad(ParameterId id, const TensorView& leaf) override {}

  // --- As the trainer calls them on the real one ---
  void seal();
  void begin_step(int64_t num_micro_batches);
  void begin_micro_batch();
  /// `num_leaves`: micro-batches of this round over all ranks.
  void end_round(int64_t num_leaves);
  void finish_gradients();
  void cancel_step();

  /// Sums of shards that the counter holds after `num_leaves` leaves.
  static int num_slots(int64_t num_leaves);

  const ParameterBytes& bytes() const { return bytes_; }
  /// Bytes of the largest tensor published since the last call: what its loader held beside it.
  int64_t take_largest_published();
  int64_t num_trainable_elements() const;
  /// Elements whose states this rank keeps.
  int64_t num_owned_elements() const;
  /// Since the last call.
  BroughtBytes take_brought();

  // Bytes that the ranks [0, num_ranks) send to all others: of leaves in a round that has
  // `num_leaves`, and in one all-gather of shards to so many groups of other ranks (each rank, or
  // each host).
  int64_t sent_leaves(int num_ranks, int64_t num_leaves) const;
  int64_t sent_shards(int num_ranks, int64_t num_groups) const;

 protected:
  void release(UnitId unit) noexcept override;

 private:
  struct Parameter {
    ParameterSpec spec;
    int64_t num_bytes = 0;
    int64_t trainable = -1;  // index among trainables
    Tensor bytes;            // frozen, of the pool
    AddressRange shared;     // frozen, shared by a host
  };
  struct KeepEarlier {
    Tensor operator()(Tensor earlier, Tensor later) const { return earlier; }
  };

  const Parameter& at(ParameterId id) const { return parameters_.at(static_cast<size_t>(id)); }
  const FlatLayout::Shard& shard() const { return flat_.shard(rank_); }
  int64_t held(int64_t num_bytes) const;
  void make_gather_buffers();

  ZeroStage stage_;
  int rank_;
  int world_size_;
  FrozenPlace frozen_place_;
  /// A unit that more than the two buffers are needed for while it is leased.
  struct Unit {
    std::string name;
    int64_t num_bytes = 0;  // gathered, with bf16 copies
    int64_t num_brought_bytes = 0;
    int num_leases = 0;
    Tensor buffer;
  };
  bool gathers() const { return stage_ == ZeroStage::k3 && world_size_ > 1; }
  bool is_shared() const { return frozen_place_ == FrozenPlace::kHost; }
  bool brings_units() const { return gathers() || frozen_place_ == FrozenPlace::kNvme; }

  std::vector<Unit> units_;
  int num_leased_ = 0;
  std::vector<Parameter> parameters_;
  ShardLayout shards_;
  FlatLayout flat_;
  ParameterBytes bytes_;
  BroughtBytes brought_;
  int64_t published_ = 0;  // bytes of the tensor that is being published
  int64_t largest_published_ = 0;
  Tensor master_weight_, bf16_, leaf_, gradient_;
  std::vector<Tensor> gather_;
  BinaryCounter<Tensor, KeepEarlier> counter_;
};

}  // namespace shardtune::parallel
