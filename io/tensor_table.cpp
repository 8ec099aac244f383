#include "io/tensor_table.h"

#include "core/checked.h"

namespace shardtune::io {

void check_element_range(const TensorInfo& tensor, int64_t begin, int64_t end, int64_t block_size) {
  const int64_t numel = try_numel(tensor.shape).value_or(0);
  if (begin < 0 || begin > end || end > numel || begin % block_size != 0 || end % block_size != 0)
    throw ArgumentError(tensor.name + ": elements [" + std::to_string(begin) + ", " +
                        std::to_string(end) + ") are not whole blocks of " +
                        std::to_string(block_size) + " inside its " + std::to_string(numel) +
                        " elements");
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace shardtune::io
