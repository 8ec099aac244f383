// Philox counters: (column / 4, token index in its sample, sample id low, sample id high), four
// columns to a counter.
#include <cmath>

#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/dropout_cpu.h"
#include "kernels/elementwise.h"

namespace shardtune::kernels {

void dropout(const TensorView& x, float p, const DropoutKey& key, const TensorView& y,
             Accumulate accumulate) {
  if (!(p >= 0.0f && p < 1.0f))
    throw ArgumentError("dropout: p: expected 0 <= p < 1, found " + std::to_string(p) +
                        ". This is a bug of the caller.");
  if (x.shape().ndim() != 2)
    fail_argument("dropout", "x", x, "a matrix");
  check_float("dropout", "x", x);
  check_matrix("dropout", "y", y, x.dim(0), x.dim(1));
  const auto rows = static_cast<size_t>(x.dim(0));
  if (key.sample_of_token.size() != rows || key.index_in_sample.size() != rows)
    fail_argument("dropout", "key", x, "a key with one entry per row");
  cpu::DropoutRow shared;
  shared.seed = key.seed;
  shared.threshold = static_cast<uint32_t>(std::lround(double{p} * 0x1.0p24));
  shared.scale = 1.0f / (1.0f - p);
  parallel_for(x.dim(0), 8, [&](int64_t begin, int64_t end) {
    cpu::DropoutRow row = shared;
    for (int64_t t = begin; t < end; ++t) {
      row.sample = key.sample_of_token[static_cast<size_t>(t)];
      row.token = static_cast<uint32_t>(key.index_in_sample[static_cast<size_t>(t)]);
      cpu::dropout_row(row, x.rows(t, t + 1), y.rows(t, t + 1), accumulate);
    }
  });
}

}  // namespace shardtune::kernels
