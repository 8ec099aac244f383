// The data plan (DESIGN section 8.10): a pure function of (samples, seed, epoch, options) that says
// what micro-batch m of the run is and how many tokens it trains. It knows no rank: the trainer
// decides who runs m.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/token_batch.h"
#include "data/dataset.h"

namespace shardtune::data {

enum class Packing { kPacked, kOneSamplePerRow };
enum class Order { kShuffled, kSequential };

struct PlanOptions {
  Packing packing = Packing::kPacked;
  Order order = Order::kShuffled;
  int64_t max_length = 1024;      // tokens of a row, virtual ones too
  int64_t micro_batch_size = 1;   // rows
  int64_t global_batch_size = 1;  // rows of an optimizer step
  uint64_t seed = 42;
  int64_t num_virtual_tokens = 0;  // that stand before each sample in the model
};

/// Samples of one micro-batch, in order.
struct MicroBatchPlan {
  std::vector<int64_t> samples;  // indices into the dataset
  int64_t num_tokens = 0;
  int64_t num_virtual_tokens = 0;  // beside them
  int64_t num_trained_tokens = 0;

  int64_t num_rows() const { return num_tokens + num_virtual_tokens; }
  /// Whether it needs more memory: each row has its activations, each trained one rows of the head
  /// as well.
  bool is_larger_than(const MicroBatchPlan& other) const {
    return std::pair(num_rows(), num_trained_tokens) >
           std::pair(other.num_rows(), other.num_trained_tokens);
  }
};

/// Micro-batches of one optimizer step: global_batch_size rows cut into micro_batch_size rows (the
/// last micro-batch of a step may have fewer; the last step of an epoch may be short).
struct StepPlan {
  std::vector<MicroBatchPlan> micro_batches;
  int64_t num_trained_tokens = 0;
  int64_t num_tokens = 0;
  int64_t num_rows = 0;
};

/// Keeps a reference to the samples. Thread safe. ArgumentError: no samples, or one longer than a
/// row.
class DataPlan {
 public:
  DataPlan(const std::vector<Sample>& samples, PlanOptions options);

  /// Optimizer steps of one epoch (depends on the epoch: packing follows its shuffle).
  int64_t steps_in_epoch(int64_t epoch) const;
  /// Steps of `num_epochs` epochs together.
  int64_t total_steps(int64_t num_epochs) const;
  /// Step `step` of the run, counted from 0 over epochs without end.
  StepPlan step(int64_t step) const;
  /// The micro-batch with the most tokens among the first `num_steps` steps, of several the one
  /// that trains most of them (the probe).
  MicroBatchPlan longest_micro_batch(int64_t num_steps) const;
  double epoch_of_step(int64_t step) const;  // fractional epoch, for metrics

 private:
  struct Epoch {
    std::vector<StepPlan> steps;
  };
  std::shared_ptr<const Epoch> epoch(int64_t index) const;
  /// Step with which an epoch begins; packs the epochs before it where that is not known yet.
  int64_t first_step(int64_t epoch) const;
  int64_t epoch_index(int64_t step) const;

  const std::vector<Sample>& samples_;
  PlanOptions options_;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::vector<std::pair<int64_t, std::shared_ptr<const Epoch>>> cached_;
  mutable std::vector<int64_t> first_steps_{0};
};

/// Lays the samples end to end. Labels are shifted: labels[i] = ids[i+1] where that is trained.
TokenBatch collate(const std::vector<Sample>& samples, const MicroBatchPlan& micro_batch);

/// Micro-batches of an evaluation: samples in order, at most `max_tokens` each with the virtual
/// tokens before each sample.
std::vector<MicroBatchPlan> plan_evaluation(const std::vector<Sample>& samples, int64_t max_tokens,
                                            int64_t num_virtual_tokens = 0);

}  // namespace shardtune::data
