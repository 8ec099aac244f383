// Philox counters: (column / 4, token index in its sample, sample id low, sample id high), one call
// for four columns.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "kernels/checks.h"
#include "kernels/elementwise.h"

namespace shardtune::kernels {

namespace {
struct DropoutRow {
  uint64_t seed, sample;
  uint32_t token, threshold;
};

// mask[j] = scale where element j is kept, 0 where it is dropped.
void draw_mask(const DropoutRow& row, float scale, std::span<float> mask) {
  for (size_t j = 0; j < mask.size(); j += 4) {
    const auto words = philox(
        row.seed, {static_cast<uint32_t>(j / 4), row.token, static_cast<uint32_t>(row.sample),
                   static_cast<uint32_t>(row.sample >> 32)});
    for (size_t i = 0; i < std::min<size_t>(4, mask.size() - j); ++i)
      mask[j + i] = (words[i] >> 8) >= row.threshold ? scale : 0.0f;
  }
}
}  // namespace

void dropout(const TensorView& x, float p, const DropoutKey& key, const TensorView& y,
             Accumulate accumulate) {
  if (!(p >= 0.0f && p < 1.0f))
    throw ArgumentError("dropout: p: expected 0 <= p < 1, found " + std::to_string(p) +
                        ". This is a bug of the caller.");
  if (x.shape().ndim() != 2)
    fail_argument("dropout", "x", x, "a matrix");
  const int64_t tokens = x.dim(0), width = x.dim(1);
  check_float("dropout", "x", x);
  check_matrix("dropout", "y", y, tokens, width);
  const auto rows = static_cast<size_t>(tokens);
  if (key.sample_of_token.size() != rows || key.index_in_sample.size() != rows)
    fail_argument("dropout", "key", x, "a key with one entry per row");
  const auto threshold = static_cast<uint32_t>(std::lround(double{p} * 0x1.0p24));
  const float scale = 1.0f / (1.0f - p);
  parallel_for(tokens, 4, [&](int64_t begin, int64_t end) {
    std::vector<float> mask(static_cast<size_t>(width));
    for (int64_t t = begin; t < end; ++t) {
      const auto token = static_cast<size_t>(t);
      draw_mask({key.seed, key.sample_of_token[token],
                 static_cast<uint32_t>(key.index_in_sample[token]), threshold},
                scale, mask);
      for (int64_t j = 0; j < width; ++j) {
        // A select, not a product: a dropped infinity leaves no NaN.
        const float factor = mask[static_cast<size_t>(j)];
        const float value = factor == 0.0f ? 0.0f : load_element(x, t * width + j) * factor;
        const float before = accumulate == Accumulate::kYes ? load_element(y, t * width + j) : 0.0f;
        store_element(y, t * width + j, before + value);
      }
    }
  });
}

}  // namespace shardtune::kernels
