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

void all_gather_shards(Communicator& comm, const FlatLayout& layout, std::span<const float> own,
                       std::span<float> flat) {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int peer = 0; peer < comm.world_size(); ++peer) {
    if (peer == comm.rank())
      continue;
    if (!own.empty())
      sends.push_back({peer, std::as_bytes(own)});
    const FlatLayout::Shard& shard = layout.shard(peer);
    if (!shard.empty())
      receives.push_back({peer, std::as_writable_bytes(elements_of(flat, shard.begin, shard.end))});
  }
  comm.exchange(sends, receives, DType::kFloat32);
}

}  // namespace shardtune::parallel
