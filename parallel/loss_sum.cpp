#include "parallel/loss_sum.h"

#include "core/checked.h"
#include "parallel/binary_counter.h"

namespace shardtune::parallel {

void LossSum::begin(int64_t num_micro_batches) {
  if (num_micro_batches < 0)
    throw ArgumentError("LossSum: expected a number of micro-batches, found " +
                        std::to_string(num_micro_batches));
  num_micro_batches_ = num_micro_batches;
  parts_.assign(static_cast<size_t>(ceil_div(num_micro_batches, comm_.world_size())), Part{});
}

void LossSum::add(int64_t m, LossTotal part) {
  if (m < 0 || m >= num_micro_batches_ || m % comm_.world_size() != comm_.rank())
    throw ArgumentError("LossSum: micro-batch " + std::to_string(m) + " of " +
                        std::to_string(num_micro_batches_) + " does not run on rank " +
                        std::to_string(comm_.rank()));
  Part& entry = parts_[static_cast<size_t>(m / comm_.world_size())];
  if (entry.added != 0)
    throw ArgumentError("LossSum: micro-batch " + std::to_string(m) + " was added twice");
  entry = {part, 1};
}

LossTotal LossSum::finish() {
  const int64_t n = comm_.world_size();
  std::vector<Part> all(parts_.size() * static_cast<size_t>(n));
  comm_.all_gather(std::as_bytes(std::span(parts_)), std::as_writable_bytes(std::span(all)),
                   DType::kUInt8, static_cast<uint64_t>(num_micro_batches_));
  const auto add_totals = [](const LossTotal& earlier, const LossTotal& later) {
    return LossTotal{earlier.sum + later.sum, earlier.count + later.count};
  };
  BinaryCounter<LossTotal, decltype(add_totals)> counter(add_totals);
  for (int64_t m = 0; m < num_micro_batches_; ++m) {
    const Part& part = all[static_cast<size_t>(m % n) * parts_.size() + static_cast<size_t>(m / n)];
    if (part.added == 0)
      throw ArgumentError("LossSum: micro-batch " + std::to_string(m) + " was never added");
    counter.push(part.total);
  }
  return counter.fold().value_or(LossTotal{});
}

}  // namespace shardtune::parallel
