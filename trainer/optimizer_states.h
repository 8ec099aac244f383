// The optimizer's states, and those that an adapter keeps for hook (6), over the ranges that this
// rank updates, in memory or, with offload_optimizer, in a StateSwap. Checkpoints hold whole
// tensors: gather() brings the ranges of all ranks together, restore() asks for this rank's alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/hooks.h"
#include "optim/optimizer.h"
#include "parallel/communicator.h"
#include "parallel/sharded_store.h"
#include "trainer/checkpoint.h"
#include "trainer/config.h"
#include "trainer/state_swap.h"

namespace shardtune::trainer {

/// Where a resume takes values from: fills `values` with the elements from `begin` on of the
/// checkpoint's tensor `name`, which belongs to the trainable `id`.
using ElementReader = std::function<void(ParameterId id, const std::string& name, int64_t begin,
                                         std::span<float> values)>;

/// Names of the states per element: the optimizer's, then the adapter's.
std::vector<std::string> element_states(const RunConfig& config);

class OptimizerStates {
 public:
  /// Zero states for store.segments(), in memory, named as element_states() does. References must
  /// outlive this object.
  OptimizerStates(parallel::ShardedParameterStore& store, const optim::Optimizer& optimizer,
                  std::vector<std::string> names);
  /// In the file instead. Errors  those of io/block_file.h, here and in every function below
  OptimizerStates(parallel::ShardedParameterStore& store, const optim::Optimizer& optimizer,
                  std::vector<std::string> names, io::SwapFile& file);

  /// Whose on_update() is called for what was stepped, where it has states of its own.
  void set_hooks(models::Hooks& hooks) { hooks_ = &hooks; }

  /// Factors on the learning rate, by trainable; 1 where this is not called.
  void scale_learning_rates(std::function<double(ParameterId)> scale) { scale_ = std::move(scale); }

  /// Bytes that the file will take.
  static int64_t swap_bytes(parallel::ShardedParameterStore& store,
                            const std::vector<std::string>& names);

  /// One update of every segment that has a gradient; `step` counts from 1. An I/O error in
  /// between leaves weights and states that belong to no step; its message says so.
  void step(double learning_rate, double weight_decay, int64_t step);

  /// Whole states of all trainables on rank 0, nothing elsewhere; tensor by tensor. Collective.
  std::vector<NamedTensor> gather(parallel::Communicator& comm);
  /// Asks for the elements that this rank holds, tensor by tensor in pieces.
  void restore(const ElementReader& read);
  /// "<trainable>.<state>" of each state.
  std::vector<std::string> tensor_names(ParameterId id) const;

  /// In memory: the states, or the buffers that they pass through.
  int64_t num_bytes() const;
  /// Of the file so far; 0 in memory.
  int64_t read_bytes() const { return swap_ == nullptr ? 0 : swap_->read_bytes(); }
  int64_t written_bytes() const { return swap_ == nullptr ? 0 : swap_->written_bytes(); }

 private:
  using Values = std::vector<std::vector<float>>;  // [state][element]

  optim::OptimizerSegment rates_of(ParameterId id, const optim::OptimizerSegment& rates) const;

  void step_in_memory(const optim::OptimizerSegment& rates, int64_t step);
  void step_swapped(const optim::OptimizerSegment& rates, int64_t step);
  /// Steps one range, or a piece of it.
  void update(const optim::OptimizerSegment& rates, const models::UpdatedRange& piece,
              int64_t step);
  /// One tensor's states into `whole` (one per state) on rank 0. Collective.
  void gather_tensor(parallel::Communicator& comm, ParameterId id, std::span<NamedTensor> whole);
  /// The states of one segment of this rank.
  const Values& values_of(size_t segment, Values& scratch);

  parallel::ShardedParameterStore& store_;
  const optim::Optimizer& optimizer_;
  std::vector<std::string> names_;
  size_t num_own_ = 0;  // of names_: the optimizer's
  models::Hooks* hooks_ = nullptr;
  std::function<double(ParameterId)> scale_;
  std::vector<Values> states_;  // [segment]; empty when swapped
  std::unique_ptr<StateSwap> swap_;
};

/// The trainables' values, whole, on rank 0, nothing elsewhere. Collective.
std::vector<NamedTensor> read_trainables(parallel::ShardedParameterStore& store,
                                         const parallel::Communicator& comm);
/// Asks for the elements that this rank updates. Then call store.publish_updates().
void restore_trainables(parallel::ShardedParameterStore& store, const ElementReader& read);

}  // namespace shardtune::trainer
