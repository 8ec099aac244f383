// The loss of a step: sums in fp64 per global micro-batch, added in the same tree as gradients, so
// every rank holds the same bits for any number of ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/communicator.h"

namespace shardtune::parallel {

/// Sum of per-token losses, and the number of tokens in it.
struct LossTotal {
  double sum = 0.0;
  double count = 0.0;
  double mean() const { return count > 0.0 ? sum / count : 0.0; }
};

class LossSum {
 public:
  explicit LossSum(Communicator& comm) : comm_(comm) {}

  /// num_micro_batches: the global number of this step (or of this evaluation).
  void begin(int64_t num_micro_batches);
  /// Result of micro-batch m, which runs on rank m mod world_size; once per m.
  /// ArgumentError: m of another rank, out of range, or added twice.
  void add(int64_t m, LossTotal part);
  /// Collective: the total, on every rank. ArgumentError: one of this rank's parts is missing.
  LossTotal finish();

 private:
  struct Part {
    LossTotal total;
    int64_t added = 0;
  };

  Communicator& comm_;
  int64_t num_micro_batches_ = 0;
  std::vector<Part> parts_;  // entry k: micro-batch k * world_size + rank
};

}  // namespace shardtune::parallel
