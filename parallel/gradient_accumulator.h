// Gradients of one optimizer step: the leaf of the micro-batch under way, whole, and the sums of
// this rank's shard in a binary counter (DESIGN section 8.2). No rank holds a second whole gradient
// while micro-batches run.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "parallel/binary_counter.h"
#include "parallel/communicator.h"
#include "parallel/flat_layout.h"

namespace shardtune::parallel {

/// A sum of leaves over this rank's shard, with one mark per piece whether any leaf reached it.
struct ShardSum {
  Tensor values;
  std::vector<uint8_t> present;
};

class GradientAccumulator {
 public:
  GradientAccumulator(Communicator& comm, const FlatLayout& layout, size_t num_tensors);

  void begin_step(int64_t num_micro_batches);
  void begin_micro_batch(int64_t m);
  /// Copies the finished gradient of a tensor; false when it already has one.
  bool add_leaf(size_t tensor, std::span<const float> leaf);
  /// Collective.
  void end_round();
  /// After the last round: this rank's finished shard; pieces that no leaf reached are zero.
  Tensor finish();
  void cancel();

  bool in_step() const { return in_step_; }
  bool in_micro_batch() const { return micro_batch_ >= 0; }
  int64_t num_micro_batches() const { return num_micro_batches_; }
  int64_t num_rounds() const;
  int64_t micro_batch_of_round(int64_t round) const;
  /// Whether any micro-batch of the step reached the tensor; the same on all ranks.
  bool has_gradient(size_t tensor) const { return reached_[tensor] != 0; }
  int64_t bytes() const;
  int64_t peak_buffer_bytes() const { return peak_buffer_bytes_; }

 private:
  struct AddShards {
    const FlatLayout::Shard* shard;
    ShardSum operator()(ShardSum earlier, ShardSum later) const;
  };
  /// Marks of every rank in this round: does it have a leaf, then one per tensor.
  std::vector<uint8_t> gather_marks();
  std::optional<ShardSum> take_own_leaf(std::span<const uint8_t> marks);
  std::vector<Tensor> move_leaves(std::span<const uint8_t> marks);
  std::vector<uint8_t> marks_of_shard(std::span<const uint8_t> marks, int from, int owner) const;

  Communicator& comm_;
  const FlatLayout& layout_;
  size_t num_tensors_;
  BinaryCounter<ShardSum, AddShards> counter_;
  Tensor leaf_;
  std::vector<uint8_t> leaf_marks_;
  std::vector<uint8_t> reached_;
  bool in_step_ = false;
  int64_t num_micro_batches_ = 0;
  int64_t round_ = 0;
  int64_t micro_batch_ = -1;
  int64_t peak_buffer_bytes_ = 0;
};

}  // namespace shardtune::parallel
