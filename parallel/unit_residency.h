// The seam for where the bytes of parameters live while nobody works with them. The store checks
// its callers and keeps the walk (parallel/unit_walk.h); a residency brings the bytes of a unit and
// lets them go. It owns the values of all parameters: frozen bytes, and the trainables' fp32
// weights with their bf16 copies.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/parameter_store.h"
#include "io/swap_file.h"
#include "parallel/communicator.h"
#include "parallel/flat_layout.h"
#include "parallel/parameter_table.h"
#include "parallel/traffic.h"

namespace shardtune::parallel {

enum class ZeroStage : int { k0 = 0, k1 = 1, k2 = 2, k3 = 3 };

/// The part of the flat weights that this rank holds: elements from `begin` on.
struct HeldWeights {
  int64_t begin = 0;
  std::span<float> values;
};

enum class BaseSharing { kNone, kPerHost };

/// What is there to hold frozen bytes.
struct FrozenStorage {
  /// What a walk may keep leased, where units are brought.
  int64_t max_held_bytes = INT64_MAX;
  /// Where frozen bytes live between walks; null: in memory. Outlives the residency.
  io::SwapFile* file = nullptr;
  /// In memory at stages 0 to 2: every rank's own, or one copy for the ranks of a host.
  BaseSharing sharing = BaseSharing::kNone;
};

struct ResidencyMemory {
  int64_t base_bytes = 0;    // frozen bytes held between walks
  int64_t shared_bytes = 0;  // of them, held once for all ranks of this host
  int64_t weight_bytes = 0;  // trainables held between walks: fp32, and bf16 where kept
  int64_t unit_bytes = 0;    // buffers that units are brought into; the most so far
};

class UnitResidency {
 public:
  virtual ~UnitResidency() = default;

  /// Collective: the publisher's bytes, which were checked, go to where they live.
  virtual void publish(ParameterId id, std::span<const std::byte> bytes) = 0;
  /// Collective, once, after every declaration.
  virtual void seal(const ShardLayout& shards, const FlatLayout& flat) = 0;

  /// Whether a walk may bring a unit while the `num_ahead` before it have not been acquired.
  virtual bool may_prefetch(UnitId, int64_t num_ahead) const { return num_ahead < 1; }
  /// Starts to bring a unit while the caller goes on. Units are acquired in the order of their
  /// prefetches.
  virtual void prefetch(UnitId unit) = 0;
  /// Brings a unit, or waits for its prefetch, which is where an error of it comes out.
  virtual void acquire(UnitId unit) = 0;
  /// The unit's bytes may go. Once per acquire().
  virtual void release(UnitId unit) noexcept = 0;
  /// Whether every rank brings every unit of a walk, with or without work for it.
  virtual bool needs_whole_walks() const { return true; }
  /// Collective where needs_whole_walks(): rows of checked fetches.
  virtual void fetch_rows(std::span<const RowFetch> fetches) = 0;
  virtual int64_t max_held_bytes() const = 0;

  /// Of an acquired unit's parameter.
  virtual TensorView value(ParameterId id) const = 0;
  virtual TensorView value_bf16(ParameterId id) const = 0;

  /// What this rank holds of the trainables; after seal().
  virtual HeldWeights weights() = 0;
  /// Collective: the owners' weights, changed in weights(), count from now on.
  virtual void publish_updates() = 0;
  /// Collective: a whole trainable into `values` on rank 0, which is empty elsewhere.
  virtual void read(ParameterId id, std::span<float> values) = 0;

  virtual ResidencyMemory memory() const = 0;
  /// Processor time so far of the thread that brings units ahead.
  virtual double background_cpu_seconds() { return 0.0; }
  /// What units and rows moved so far; not while a unit is under way.
  virtual StoreTraffic traffic() const { return {}; }
};

/// Units read ahead from NVMe, each into a buffer of the largest unit's size; up to
/// kNvmeMostAhead where together they are no larger than those: the head's chunks come in a burst.
inline constexpr int kNvmeReadAhead = 3;
inline constexpr int kNvmeMostAhead = 32;

/// Units gathered ahead: as many as fit into 64 MiB, at least one, at most eight. Small units are
/// many, and a head's chunks, which come in a burst, would be waited for.
int gather_ahead(int64_t largest_unit_bytes);

/// Stages 0 to 2, and one rank at any stage: everything whole in memory.
std::unique_ptr<UnitResidency> make_whole_residency(Communicator& comm, const ParameterTable& table,
                                                    ZeroStage stage);
/// The same with one copy of the frozen bytes for the ranks of a host.
std::unique_ptr<UnitResidency> make_host_residency(Communicator& comm, const ParameterTable& table,
                                                   ZeroStage stage);
/// The same with the frozen bytes in storage.file.
std::unique_ptr<UnitResidency> make_nvme_residency(Communicator& comm, const ParameterTable& table,
                                                   ZeroStage stage, const FrozenStorage& storage);
/// Stage 3: every rank holds a part of each unit, in memory or in storage.file, gathered while the
/// unit is at work.
std::unique_ptr<UnitResidency> make_sharded_residency(Communicator& comm,
                                                      const ParameterTable& table,
                                                      const FrozenStorage& storage);
/// Stage 3 on one host whose ranks share memory (comm.shares_memory()): every rank keeps a part of
/// each unit and maps the other ranks' parts while the unit is at work. Only publish(), seal(),
/// publish_updates() and read() are collective.
std::unique_ptr<UnitResidency> make_mapped_residency(Communicator& comm,
                                                     const ParameterTable& table,
                                                     int64_t max_held_bytes);

/// Rows of a matrix in memory.
void copy_rows(const TensorView& table, const RowFetch& fetch);

}  // namespace shardtune::parallel
