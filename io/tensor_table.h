// The tensors of a model with the place of each one's bytes; shared by the readers of this folder.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "io/tensor_source.h"

namespace shardtune::io {

class TensorTable {
 public:
  struct Place {
    size_t file = 0;     // which of the mapped files
    int64_t offset = 0;  // first byte in that file
  };

  /// False when there is a tensor of this name already (then nothing changes).
  bool add(TensorInfo info, Place place) {
    if (!index_.emplace(info.name, infos_.size()).second)
      return false;
    infos_.push_back(std::move(info));
    places_.push_back(place);
    return true;
  }

  const std::vector<TensorInfo>& infos() const { return infos_; }
  const TensorInfo* find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &infos_[found->second];
  }
  /// The place of an element of infos(), or of a copy of one. ArgumentError for anything else.
  const Place& place(const TensorInfo& tensor) const {
    const auto found = index_.find(tensor.name);
    if (found == index_.end() || infos_[found->second].num_bytes != tensor.num_bytes)
      throw ArgumentError(tensor.name + ": not a tensor of this file");
    return places_[found->second];
  }
  const Place& place(size_t index) const { return places_[index]; }

 private:
  std::vector<TensorInfo> infos_;
  std::vector<Place> places_;
  std::map<std::string, size_t, std::less<>> index_;
};

/// ArgumentError unless 0 <= begin <= end <= numel and both are multiples of block_size.
void check_element_range(const TensorInfo& tensor, int64_t begin, int64_t end, int64_t block_size);

/// "[2048, 576]"
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace shardtune::io
