// All trainables one after another in one flat buffer of fp32, so that the shard of a rank
// (parallel/shards.h) is one contiguous piece of it and travels as one message.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/shards.h"

namespace shardtune::parallel {

class FlatLayout {
 public:
  static constexpr int64_t kAlignElements = 16;  // tensors begin at multiples of 64 bytes

  FlatLayout() = default;
  explicit FlatLayout(const ShardLayout& shards);

  struct Piece {             // of one tensor
    size_t tensor = 0;       // index in order of declaration
    int64_t begin = 0;       // in the tensor
    int64_t flat_begin = 0;  // in the flat buffer
    int64_t length = 0;
  };
  /// Elements of a flat buffer.
  int64_t size() const { return size_; }
  int64_t offset(size_t tensor) const { return offsets_[tensor]; }
  /// A rank's shard: flat elements [begin, end) and its pieces.
  struct Shard {
    int64_t begin = 0;
    int64_t end = 0;
    std::vector<Piece> pieces;
    int64_t length() const { return end - begin; }
    bool empty() const { return begin == end; }
  };
  const Shard& shard(int rank) const { return shards_[static_cast<size_t>(rank)]; }

 private:
  std::vector<int64_t> offsets_;
  std::vector<Shard> shards_;
  int64_t size_ = 0;
};

/// Elements [begin, end) of a buffer of floats.
std::span<float> elements_of(std::span<float> buffer, int64_t begin, int64_t end);

/// Every rank's shard to every other rank, in place: this rank's stands in the whole `flat`.
/// Collective.
void all_gather_shards(Communicator& comm, const FlatLayout& layout, std::span<float> flat);

}  // namespace shardtune::parallel
