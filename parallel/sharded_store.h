// ParameterStore for ZeRO stages 0 to 3. A stage shards the ranges a rank updates, hence its
// optimizer states (from 1 on), the gradient (from 2 on), and the parameters themselves, frozen and
// trainable (3): where their bytes live is the residency's matter (parallel/unit_residency.h). The
// bits of gradients, norms and weights are the same for every stage and number of ranks.
//
// One optimizer step, on every rank:
//   begin_step(M)                           M = global number of micro-batches
//   for round k = 0 .. num_rounds()-1:      micro-batch m = k * world_size + rank, when m < M
//     begin_walk(); begin_micro_batch(m); forward; backward (the tape calls grad()); end_walk()
//                                           without a micro-batch: begin_walk(); end_walk()
//     end_round()                           collective
//   finish_gradients()                      collective
//   gradient_square_sum()                   collective; clip; step the optimizer on segments()
//   publish_updates()                       collective
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/parameter_store.h"
#include "parallel/communicator.h"
#include "parallel/shards.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

/// ConfigError when not 0..3.
ZeroStage zero_stage_from(int64_t number);

/// Bytes held now, by purpose; optimizer states are the trainer's and not in here.
struct StoreMemory {
  int64_t base_bytes = 0;      // frozen parameters; at stage 3 this rank's shards
  int64_t shared_bytes = 0;    // of them, held once for all ranks of this host
  int64_t adapter_bytes = 0;   // trainables: fp32 and bf16; at stage 3 this rank's fp32 shard
  int64_t unit_bytes = 0;      // stage 3: buffers that units are gathered into; the most so far
  int64_t gradient_bytes = 0;  // leaf, counter, finished gradient
  int64_t buffer_bytes = 0;    // in flight between ranks; the most so far
};

/// What a walk may keep leased at stage 3: heads above it are walked chunk by chunk, which computes
/// their logits twice.
inline constexpr int64_t kMaxHeldBytes = int64_t{256} << 20;

class ShardedParameterStore : public ParameterStore {
 public:
  /// A range of one trainable that this rank updates. Spans stay valid until the next
  /// begin_step(). At stage 0 every rank has every range, whole; else its shard.
  struct Segment {
    ParameterId id{};
    int64_t begin = 0;  // elements [begin, end) of the tensor
    int64_t end = 0;
    std::span<float> parameter;
    std::span<float> gradient;
    /// No micro-batch of the step reached the tensor: the gradient is zero, and the update is to
    /// be skipped as torch does for a gradient of None. The same on all ranks.
    bool has_gradient = false;
  };

  /// With storage.file, publish(), acquire() and begin_walk() have the errors of io/block_file.h;
  /// with a shared base publish() has those of parallel/host_segment.h.
  /// ArgumentError: a base that is shared at stage 3 or in a file
  ShardedParameterStore(Communicator& comm, ZeroStage stage,
                        const FrozenStorage& storage = {.max_held_bytes = kMaxHeldBytes});
  ~ShardedParameterStore() override;

  // --- ParameterStore ---
  UnitId add_unit(std::string name) override;
  ParameterId declare(ParameterSpec spec) override;
  bool is_publisher(ParameterId id) const override;
  /// Also later, to replace the bytes. ArgumentError: the publisher's byte count is not the spec's.
  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  UnitLease acquire(UnitId unit, Pass pass) override;
  void fetch_rows(std::span<const RowFetch> fetches) override;
  /// Between begin_walk() and end_walk() no other collective may run: the next unit is being
  /// gathered. At stage 3 leases and walks come after seal().
  void begin_walk(std::span<const UnitId> units) override;
  void end_walk() override;
  /// Ends a walk that an error stopped. Local: the store serves read() and publish_updates() after
  /// it, but no further walk.
  void abandon_walk() noexcept;
  int64_t max_held_bytes() const override;
  int64_t num_parameters() const override;
  const ParameterSpec& spec(ParameterId id) const override;
  ParameterId find(std::string_view name) const override;
  TensorView value(ParameterId id) const override;
  TensorView value_bf16(ParameterId id) const override;
  /// ArgumentError: outside a micro-batch, frozen, wrong shape, or twice in one micro-batch.
  void grad(ParameterId id, const TensorView& leaf) override;

  // --- For the trainer ---
  /// Collective, once, after every declare(): compares the declarations of all ranks and cuts the
  /// shards. publish() may come before or after. RankMismatchError when declarations differ.
  void seal();

  void begin_step(int64_t num_micro_batches);
  int64_t num_rounds() const;
  /// The micro-batch of this rank in a round, or -1 when it has none.
  int64_t micro_batch_of_round(int64_t round) const;
  void begin_micro_batch(int64_t m);
  /// Collective, once per round, also on a rank without a micro-batch: sends this rank's leaf to
  /// the owners, which add the leaves of the round in order of m.
  void end_round();
  /// Collective, after the last round: the finished gradient stands in segments().
  void finish_gradients();
  /// Local: drops the gradients of a step under way (a probe without update, a skipped step).
  void cancel_step();

  /// What this rank updates; after seal(). Gradients are those of the last finish_gradients().
  std::span<Segment> segments();
  /// The ranges of any rank, e.g. to place optimizer states of a checkpoint.
  const ShardLayout& layout() const;
  /// Collective: sum of squares of the finished gradient in fp64 per chunk of 4,096 elements,
  /// added in order of chunks: the same bits on all ranks and stages. Its root is the norm.
  double gradient_square_sum();
  /// Collective: after segments() were updated, brings the new values to all ranks and renews the
  /// bf16 copies.
  void publish_updates();

  /// Collective: a whole trainable on rank 0, for checkpoints and exports; elsewhere `values` is
  /// empty.
  void read(ParameterId id, std::span<float> values);
  /// Local: sets elements from `begin` on, those that this rank holds. Then call publish_updates():
  /// where ranks wrote differently, the owner's values count.
  void write(ParameterId id, int64_t begin, std::span<const float> values);

  /// Trainables in order of declaration.
  std::vector<ParameterId> trainables() const;
  int64_t num_trainable_elements() const;
  ZeroStage stage() const { return stage_; }
  StoreMemory memory() const;
  /// Processor time so far of the thread that brings units ahead. Waiting for units is timed as
  /// Activity::kUnits of the thread that waits.
  double background_cpu_seconds() const;
  /// What steps moved so far; between walks.
  StoreTraffic traffic() const;

 protected:
  void release(UnitId unit) noexcept override;

 private:
  struct State;
  Communicator& comm_;
  ZeroStage stage_;
  std::unique_ptr<State> state_;
};

}  // namespace shardtune::parallel
