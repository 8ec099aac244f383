#include "kernels/rope.h"

#include <cmath>

#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/rope_cpu.h"

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
  check_float("rope", "x", x);
  if (x.shape().ndim() != 2)
    fail_argument("rope", "x", x, "a matrix");
  const auto half = static_cast<int64_t>(args.inverse_frequencies.size());
  if (half == 0 || x.dim(1) % (2 * half) != 0)
    fail_argument("rope", "x", x, "rows of whole heads of " + std::to_string(2 * half));
  if (static_cast<int64_t>(args.positions.size()) != x.dim(0))
    fail_argument("rope", "x", x, std::to_string(args.positions.size()) + " rows, as positions");
  parallel_for(x.dim(0), 16,
               [&](int64_t begin, int64_t end) { cpu::rope_rows(x, args, direction, begin, end); });
}

}  // namespace shardtune::kernels
