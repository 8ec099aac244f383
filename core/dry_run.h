// A walk through real code that counts memory and computes nothing. While a DryRun lives, tensors
// of its thread come from a pool of its own whose pages nobody touches, and parallel loops do not
// run their bodies: an operation checks its arguments, allocates what it always allocates, and
// returns. So the prediction of a run's memory is the run's own sequence of allocations.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "core/tensor.h"

namespace shardtune {

/// What a buffer is for, in the tables of memory.
enum class Purpose {
  kActivations,
  kAttention,
  kHead,
  kDequantised,
  kProducts,
  kParameters,
  kInt8Scales,
  kKeptBase
};
inline constexpr int kNumPurposes = 8;

/// While it lives, buffers of this thread count for `purpose`. Nested: the inner one counts.
class PurposeScope {
 public:
  explicit PurposeScope(Purpose purpose);
  ~PurposeScope();
  PurposeScope(const PurposeScope&) = delete;
  PurposeScope& operator=(const PurposeScope&) = delete;

 private:
  Purpose before_;
};

class DryRun {
 public:
  /// ArgumentError when this thread has one already.
  DryRun();
  ~DryRun();
  DryRun(const DryRun&) = delete;
  DryRun& operator=(const DryRun&) = delete;

  /// The one of this thread; null outside.
  static DryRun* current();

  void* allocate(int64_t num_bytes);
  /// False when the buffer is not of this dry run.
  bool release(void* pointer, int64_t num_bytes) noexcept;

  /// Counts memory that the run holds beside the pool (buffers for I/O, messages); negative when it
  /// is let go.
  void hold_beside_pool(int64_t num_bytes) noexcept;
  /// Gives back what the pool keeps, as BufferPool::trim.
  void trim() noexcept { pool_.trim(); }

  const BufferPool& pool() const { return pool_; }
  /// The most bytes at once: pages of the pool, in use or kept, and what stands beside it.
  int64_t peak_bytes() const { return peak_; }
  /// Of them, bytes asked for and in use, by Purpose, and what stood beside the pool.
  const std::array<int64_t, kNumPurposes>& bytes_at_peak() const { return at_peak_; }
  int64_t beside_pool_at_peak() const { return beside_at_peak_; }
  /// What is held now, pages kept for reuse counted.
  int64_t bytes_now() const { return pool_.resident_bytes() + beside_; }

 private:
  void note_peak() noexcept;

  BufferPool pool_;
  std::unordered_map<const void*, Purpose> purposes_;
  std::array<int64_t, kNumPurposes> in_use_{};
  std::array<int64_t, kNumPurposes> at_peak_{};
  int64_t beside_ = 0;
  int64_t beside_at_peak_ = 0;
  int64_t peak_ = 0;
};

/// In a dry run: counts the scratch that the tasks of a parallel loop hold at once, each thread
/// `num_bytes` and, in a second buffer, `more_bytes`; `num_tasks` bounds the threads. Call before
/// the loop. Nothing otherwise.
void count_task_scratch(int64_t num_tasks, int64_t num_bytes, int64_t more_bytes = 0);

}  // namespace shardtune
