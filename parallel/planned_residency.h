// Where the bytes of units would live on one rank, buffer by buffer in the order of the real
// residencies, without other ranks and without bytes: for a dry run (core/dry_run.h), which counts
// them. Stage 3 follows sharded_residency.cpp, on one host mapped_residency.cpp, offload_param
// frozen_swap.cpp, a shared base host_residency.cpp, the rest whole_residency.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "parallel/traffic.h"
#include "parallel/unit_layout.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

/// Where frozen bytes live between their uses; kHost: in memory, once for the ranks of a host (at
/// stage 3 of the only host).
enum class FrozenPlace { kMemory, kHost, kNvme };

/// What the walks over one micro-batch bring to a rank at stage 3.
struct BroughtBytes {
  int64_t units = 0;  // all ranks' parts of every unit, its own too
  int64_t rows = 0;   // of tables, with the requests for them
};

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

/// Bytes of the parameters that a rank holds, by what they are.
struct ParameterBytes {
  int64_t codes = 0;       // quantised values
  int64_t scales = 0;      // absmax and what else belongs to codes
  int64_t dense = 0;       // frozen and not quantised: norms, embedding, head
  int64_t master = 0;      // trainables in fp32
  int64_t bf16 = 0;        // their copies for products
  int64_t gather = 0;      // the buffers for units that are gathered
  int64_t read_ahead = 0;  // the buffers for what is read from NVMe
  int64_t shared = 0;      // of the base, in memory that all ranks of a host map
  int64_t mapped = 0;      // of base and master: this rank's part of such memory
  int64_t base() const { return codes + scales + dense; }
  /// What comes from the buffer pool.
  int64_t pooled() const { return base() - shared - mapped + master + bf16 + gather; }
};

class PlannedResidency final : public UnitResidency {
 public:
  PlannedResidency(const ParameterTable& table, ZeroStage stage, int rank, FrozenPlace place)
      : table_(table),
        rank_(rank),
        place_(place),
        is_sharded_(stage == ZeroStage::k3 && table.world_size() > 1),
        gathers_(is_sharded_ && place != FrozenPlace::kHost) {}

  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  void seal(const ShardLayout& shards, const FlatLayout& flat) override;
  bool may_prefetch(UnitId unit, int64_t num_ahead) const override;
  void prefetch(UnitId unit) override;
  void acquire(UnitId unit) override;
  void release(UnitId unit) noexcept override;
  void fetch_rows(std::span<const RowFetch> fetches) override;
  int64_t max_held_bytes() const override;
  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override;
  HeldWeights weights() override { return {}; }
  void publish_updates() override {}
  void read(ParameterId id, std::span<float> values) override {}
  ResidencyMemory memory() const override { return {}; }
  StoreTraffic traffic() const override { return traffic_; }

  const ParameterBytes& bytes() const { return bytes_; }
  /// Since the last call.
  BroughtBytes take_brought() { return std::exchange(brought_, {}); }
  /// Bytes of a rank's swap file of the frozen base.
  int64_t swap_bytes(int rank) const;
  /// The most bytes of other ranks' memory that a rank mapped at once.
  int64_t peak_foreign_bytes() const { return peak_foreign_bytes_; }
  /// Held beside the pool while parameters are published.
  int64_t publishing_bytes() const { return place_ == FrozenPlace::kNvme ? 2 * largest_ : 0; }

 private:
  struct Unit {
    bool placed = false;
    UnitLayout layout;
    Tensor shard;
    size_t num_published = 0;
    Tensor buffer;  // gathered
    bool has_spare = false;
    int64_t foreign_bytes = 0;  // mapped while at work
    bool is_mapped = false;
    int64_t extent = 0;    // in the swap file
    int64_t own_read = 0;  // bytes of a read buffer of its own
    bool is_read = false;
  };

  bool is_on_nvme() const { return place_ == FrozenPlace::kNvme; }
  bool maps() const { return is_sharded_ && !gathers_; }
  Unit& unit(UnitId id);
  Unit& placed(UnitId id);
  int64_t held_bytes(const Unit& unit) const;
  void count_frozen(ParameterId id);
  void publish_shard(ParameterId id);
  void publish_shared(ParameterId id);
  int64_t lay_out_units();
  void seal_mapped();
  void take_buffer(Unit& unit, int64_t num_bytes);
  void hold_foreign(Unit& unit, bool holds) noexcept;
  void count_gather(const Unit& unit);
  void count_row_blocks(const DeclaredParameter& table, const RowFetch& fetch);
  void take_read_buffer(Unit& unit);
  void drop_read_buffer(Unit& unit) noexcept;

  const ParameterTable& table_;
  int rank_;
  FrozenPlace place_;
  bool is_sharded_;
  bool gathers_;  // else the ranks of a host map each other's shards
  std::vector<Unit> units_;
  std::map<ParameterId, Tensor> whole_;         // frozen, in memory and not sharded
  std::map<ParameterId, AddressRange> shared_;  // frozen, in memory that a host shares
  FlatLayout flat_;
  Tensor master_weight_, bf16_;
  std::vector<Tensor> spares_;
  int read_ahead_ = 1;  // from seal() on
  int num_read_spares_ = 0;
  int64_t ahead_bytes_ = 0;  // of read buffers for units ahead
  bool has_row_buffer_ = false;
  int64_t largest_ = 0;  // frozen parameter
  int64_t foreign_bytes_ = 0, peak_foreign_bytes_ = 0;
  std::vector<UnitId> pending_;
  ParameterBytes bytes_;
  StoreTraffic traffic_;
  BroughtBytes brought_;
};

}  // namespace shardtune::parallel
