#include "parallel/flat_layout.h"

#include "core/checked.h"

namespace shardtune::parallel {

FlatLayout::FlatLayout(const ShardLayout& shards) {
  for (const ShardedTensor& tensor : shards.tensors()) {
    offsets_.push_back(size_);
    size_ = checked_add(size_, round_up(tensor.numel, kAlignElements));
  }
  for (int rank = 0; rank < shards.world_size(); ++rank) {
    Shard shard;
    size_t tensor = 0;
    for (const ShardRange& range : shards.ranges(rank)) {
      while (shards.tensors()[tensor].id != range.id)
        ++tensor;
      shard.pieces.push_back(
          {tensor, range.begin, offsets_[tensor] + range.begin, range.end - range.begin});
    }
    if (!shard.pieces.empty()) {
      shard.begin = shard.pieces.front().flat_begin;
      shard.end = shard.pieces.back().flat_begin + shard.pieces.back().length;
    }
    shards_.push_back(std::move(shard));
  }
}

std::span<float> elements_of(std::span<float> buffer, int64_t begin, int64_t end) {
  if (begin == end)
    return {};
  return buffer.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

void all_gather_shards(Communicator& comm, const FlatLayout& layout, std::span<float> flat) {
  std::vector<Block> blocks;
  for (int rank = 0; rank < comm.world_size(); ++rank) {
    const FlatLayout::Shard& shard = layout.shard(rank);
    if (!shard.empty())
      blocks.push_back({rank, std::as_writable_bytes(elements_of(flat, shard.begin, shard.end))});
  }
  comm.all_gather_blocks(blocks, DType::kFloat32);
}

}  // namespace shardtune::parallel
