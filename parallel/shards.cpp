#include "parallel/shards.h"

#include <algorithm>

#include "core/checked.h"

namespace shardtune::parallel {

ShardLayout::ShardLayout(std::vector<ShardedTensor> tensors, int world_size)
    : tensors_(std::move(tensors)), world_size_(world_size) {
  if (world_size < 1)
    throw ArgumentError("ShardLayout: expected at least 1 rank, found " +
                        std::to_string(world_size));
  for (const ShardedTensor& tensor : tensors_) {
    if (tensor.numel < 0)
      throw ArgumentError("ShardLayout: negative length of a tensor");
    first_chunk_of_tensor_.push_back(num_chunks_);
    num_chunks_ = checked_add(
        num_chunks_, tensor.numel / kShardGranule + (tensor.numel % kShardGranule != 0 ? 1 : 0));
  }
  first_chunk_of_tensor_.push_back(num_chunks_);
}

int ShardLayout::owner_of_chunk(int64_t chunk) const {
  if (chunk < 0 || chunk >= num_chunks_)
    throw ArgumentError("ShardLayout: expected a chunk in [0, " + std::to_string(num_chunks_) +
                        "), found " + std::to_string(chunk));
  return static_cast<int>(checked_mul(chunk, world_size_) / num_chunks_);
}

int64_t ShardLayout::first_chunk(int rank) const {
  if (rank < 0 || rank > world_size_)
    throw ArgumentError("ShardLayout: expected a rank in [0, " + std::to_string(world_size_) +
                        "], found " + std::to_string(rank));
  // The smallest c with c*N/C >= rank.
  return ceil_div(checked_mul(rank, num_chunks_), world_size_);
}

std::vector<ShardRange> ShardLayout::ranges(int rank) const {
  if (rank == world_size_)
    throw ArgumentError("ShardLayout: no rank " + std::to_string(rank));
  return ranges_of_chunks(first_chunk(rank), first_chunk(rank + 1));
}

std::vector<ShardRange> ShardLayout::all_ranges() const { return ranges_of_chunks(0, num_chunks_); }

std::vector<ShardRange> ShardLayout::ranges_of_chunks(int64_t first, int64_t last) const {
  std::vector<ShardRange> result;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const int64_t begin_chunk = std::max(first, first_chunk_of_tensor_[t]);
    const int64_t end_chunk = std::min(last, first_chunk_of_tensor_[t + 1]);
    if (begin_chunk >= end_chunk)
      continue;
    const int64_t origin = first_chunk_of_tensor_[t];
    result.push_back({tensors_[t].id, (begin_chunk - origin) * kShardGranule,
                      std::min((end_chunk - origin) * kShardGranule, tensors_[t].numel)});
  }
  return result;
}

}  // namespace shardtune::parallel
