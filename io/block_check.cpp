#include "io/block_check.h"

#include <algorithm>
#include <utility>

#include "core/parallel_for.h"
#include "io/file.h"

namespace shardtune::io {

BlockCheck::BlockCheck(std::vector<std::span<const std::byte>> blocks)
    : blocks_(std::move(blocks)), sums_(blocks_.size()) {}

void BlockCheck::run() {
  constexpr size_t kTaken = 8;  // 512 KiB at a time
  while (true) {
    const size_t begin = next_.fetch_add(kTaken, std::memory_order_relaxed);
    if (begin >= blocks_.size())
      return;
    const size_t end = std::min(begin + kTaken, blocks_.size());
    for (size_t i = begin; i < end; ++i)
      sums_[i] = crc32c(blocks_[i]);
    if (num_done_.fetch_add(end - begin, std::memory_order_acq_rel) + end - begin == blocks_.size())
      num_done_.notify_all();
  }
}

const std::vector<uint32_t>& BlockCheck::finish(CheckThreads threads) {
  constexpr size_t kWorthThreads = 16;
  const size_t begun = std::min(next_.load(std::memory_order_relaxed), blocks_.size());
  if (threads == CheckThreads::kAll && blocks_.size() - begun >= kWorthThreads)
    parallel_for(num_threads(), 1, [&](int64_t, int64_t) { run(); });
  run();
  for (size_t done = num_done_.load(std::memory_order_acquire); done < blocks_.size();
       done = num_done_.load(std::memory_order_acquire))
    num_done_.wait(done, std::memory_order_acquire);
  return sums_;
}

}  // namespace shardtune::io
