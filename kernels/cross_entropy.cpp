#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel_for.h"
#include "kernels/checks.h"

namespace shardtune::kernels {

SoftmaxStats::SoftmaxStats(int64_t rows)
    : max(Shape{rows}, DType::kFloat32),
      sum(Tensor::zeros(Shape{rows}, DType::kFloat32)),
      label_logit(Tensor::zeros(Shape{rows}, DType::kFloat32)) {
  std::fill_n(max.data<float>(), rows, -std::numeric_limits<float>::infinity());
}

void softmax_stats_merge(const TensorView& logits, int64_t first, std::span<const int32_t> labels,
                         SoftmaxStats& stats) {
  const int64_t rows = logits.dim(0), n = logits.dim(1);
  const float* const x = logits.data<const float>();
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const row = x + r * n;
      float& max = stats.max.data<float>()[r];
      float& sum = stats.sum.data<float>()[r];
      const float new_max = std::max(max, *std::max_element(row, row + n));
      float chunk_sum = 0.0f;
      for (int64_t j = 0; j < n; ++j)
        chunk_sum += std::exp(row[j] - new_max);
      sum = (sum == 0.0f ? 0.0f : sum * std::exp(max - new_max)) + chunk_sum;
      max = new_max;
      const int64_t label = labels[static_cast<size_t>(r)] - first;
      if (label >= 0 && label < n)
        stats.label_logit.data<float>()[r] = row[label];
    }
  });
}

void cross_entropy_losses(const SoftmaxStats& stats, std::span<float> losses) {
  for (size_t r = 0; r < losses.size(); ++r)
    losses[r] = std::log(stats.sum.data<float>()[r]) + stats.max.data<float>()[r] -
                stats.label_logit.data<float>()[r];
}

void cross_entropy_dlogits(const TensorView& logits, int64_t first, std::span<const int32_t> labels,
                           const SoftmaxStats& stats, float scale, const TensorView& dlogits) {
  const int64_t rows = logits.dim(0), n = logits.dim(1);
  const float* const x = logits.data<const float>();
  parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float max = stats.max.data<float>()[r], sum = stats.sum.data<float>()[r];
      const int64_t label = labels[static_cast<size_t>(r)] - first;
      for (int64_t j = 0; j < n; ++j) {
        const float p = std::exp(x[r * n + j] - max) / sum;
        store_element(dlogits, r * n + j, scale * (p - (j == label ? 1.0f : 0.0f)));
      }
    }
  });
}

double sum_in_order(std::span<const float> values) {
  double sum = 0.0;
  for (const float value : values)
    sum += double{value};
  return sum;
}

void argmax_rows(const TensorView& logits, std::span<int32_t> out) {
  const int64_t n = logits.dim(1);
  const float* const x = logits.data<const float>();
  for (size_t r = 0; r < out.size(); ++r) {
    const float* const row = x + static_cast<int64_t>(r) * n;
    out[r] = static_cast<int32_t>(std::max_element(row, row + n) - row);
  }
}

}  // namespace shardtune::kernels
