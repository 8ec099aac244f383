// Which rank owns which part of the trainable parameters: pure arithmetic, the same on every rank.
// Every tensor is cut at multiples of 4,096 elements counted from its own start; the chunks of all
// tensors, in order of declaration, are numbered 0..C-1 and chunk c belongs to rank c*N/C (DESIGN
// section 8.3). So a rank's shard is one contiguous run of chunks, possibly none.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/parameter_store.h"
#include "kernels/elementwise.h"

namespace shardtune::parallel {

inline constexpr int64_t kShardGranule = kernels::kShardGranule;

/// Elements [begin, end) of one trainable; begin is a multiple of kShardGranule.
struct ShardRange {
  ParameterId id{};
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const ShardRange&) const = default;
};

/// Name and length of one trainable, in order of declaration.
struct ShardedTensor {
  ParameterId id{};
  int64_t numel = 0;
};

class ShardLayout {
 public:
  ShardLayout() = default;
  ShardLayout(std::vector<ShardedTensor> tensors, int world_size);

  int world_size() const { return world_size_; }
  int64_t num_chunks() const { return num_chunks_; }
  std::span<const ShardedTensor> tensors() const { return tensors_; }

  int owner_of_chunk(int64_t chunk) const;
  /// First chunk of a rank; first_chunk(world_size) == num_chunks().
  int64_t first_chunk(int rank) const;
  /// The ranges of a rank, at most one per tensor, in order of declaration.
  std::vector<ShardRange> ranges(int rank) const;
  /// One range per tensor, covering everything.
  std::vector<ShardRange> all_ranges() const;

 private:
  std::vector<ShardRange> ranges_of_chunks(int64_t first, int64_t last) const;

  std::vector<ShardedTensor> tensors_;
  std::vector<int64_t> first_chunk_of_tensor_;  // tensors + 1 entries
  int64_t num_chunks_ = 0;
  int world_size_ = 1;
};

}  // namespace shardtune::parallel
