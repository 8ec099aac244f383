// Checksums of blocks that have arrived, computed by whoever has time: a thread beside the caller's
// work begins, and who waits for the result takes what is left.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace shardtune::io {

/// Who checks the blocks of a read: kAll the threads of parallel loops, kCaller the calling thread
/// alone, as one beside the loops must.
enum class CheckThreads { kAll, kCaller };

class BlockCheck {
 public:
  /// The blocks' bytes stay as they are until finish().
  explicit BlockCheck(std::vector<std::span<const std::byte>> blocks);

  size_t num_blocks() const { return blocks_.size(); }
  /// Computes until every block is taken; any thread, several at once.
  void run();
  /// Takes part, then waits for the others. CRC-32C of each block.
  const std::vector<uint32_t>& finish(CheckThreads threads);

 private:
  std::vector<std::span<const std::byte>> blocks_;
  std::vector<uint32_t> sums_;
  std::atomic<size_t> next_{0};
  std::atomic<size_t> num_done_{0};
};

}  // namespace shardtune::io
