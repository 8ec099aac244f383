#include "kernels/rope.h"

#include <cmath>

#include "kernels/reference.h"

namespace shardtune::kernels {

std::vector<float> rope_inverse_frequencies(int64_t head_dim, double theta) {
  if (head_dim <= 0 || head_dim % 2 != 0)
    throw ArgumentError("rope: head_dim: expected an even number above 0, found " +
                        std::to_string(head_dim));
  std::vector<float> result(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = static_cast<float>(
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)));
  return result;
}

void rope(const TensorView& x, const RopeArgs& args, RopeDirection direction) {
  rope_reference(x, args, direction);
}

}  // namespace shardtune::kernels
