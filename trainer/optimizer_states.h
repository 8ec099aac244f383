// The optimizer's states over the ranges that this rank updates. Checkpoints see whole tensors:
// gather() brings the ranges of all ranks together, restore() takes this rank's out again.
#pragma once

#include <cstdint>
#include <vector>

#include "optim/optimizer.h"
#include "parallel/communicator.h"
#include "parallel/sharded_store.h"
#include "trainer/checkpoint.h"

namespace shardtune::trainer {

class OptimizerStates {
 public:
  /// Zero states for store.segments(). Both must outlive this object.
  OptimizerStates(parallel::ShardedParameterStore& store, const optim::Optimizer& optimizer);

  /// One update of every segment that has a gradient; `step` counts from 1.
  void step(double learning_rate, double weight_decay, int64_t step);

  /// Whole states of all trainables on rank 0, nothing elsewhere. Collective.
  std::vector<NamedTensor> gather(parallel::Communicator& comm) const;
  /// DataError: a tensor missing or of another size.
  void restore(const std::vector<NamedTensor>& tensors);

  int64_t num_bytes() const;

 private:
  parallel::ShardedParameterStore& store_;
  const optim::Optimizer& optimizer_;
  std::vector<std::string> names_;
  std::vector<std::vector<std::vector<float>>> states_;  // [segment][state][element]
};

/// The trainables' values, whole, on rank 0, nothing elsewhere. Collective.
std::vector<NamedTensor> read_trainables(parallel::ShardedParameterStore& store,
                                         const parallel::Communicator& comm);
/// DataError: a tensor missing, unknown or of another shape. Collective.
void restore_trainables(parallel::ShardedParameterStore& store,
                        const std::vector<NamedTensor>& tensors);

}  // namespace shardtune::trainer
