#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "core/token_batch.h"
#include "kernels/checks.h"
#include "kernels/cross_entropy_cpu.h"

namespace shardtune::kernels {

namespace {
void check_rows(const char* op, const TensorView& logits, size_t labels,
                const SoftmaxStats& stats) {
  if (logits.shape().ndim() != 2 || logits.dtype() != DType::kFloat32)
    fail_argument(op, "logits", logits, "a float32 matrix");
  if (static_cast<int64_t>(labels) != logits.dim(0) || stats.max.numel() != logits.dim(0))
    fail_argument(op, "logits", logits,
                  "as many rows as labels (" + std::to_string(labels) + ") and statistics (" +
                      std::to_string(stats.max.numel()) + ")");
}

// Column of the label in a chunk of n entries from `first`, or -1. ArgumentError when negative.
int64_t label_column(int32_t label, int64_t first, int64_t n) {
  if (label == kIgnoreLabel)
    return -1;
  if (label < 0)
    throw ArgumentError("cross_entropy: label: expected a vocabulary entry, found " +
                        std::to_string(label) + ". This is a bug of the caller.");
  const int64_t column = label - first;
  return column >= 0 && column < n ? column : -1;
}
}  // namespace

SoftmaxStats::SoftmaxStats(int64_t rows)
    : max(Shape{rows}, DType::kFloat32),
      sum(Tensor::zeros(Shape{rows}, DType::kFloat32)),
      label_logit(Tensor::zeros(Shape{rows}, DType::kFloat32)) {
  std::fill_n(max.data<float>(), rows, -std::numeric_limits<float>::infinity());
}

void softmax_stats_merge(const TensorView& logits, int64_t first, std::span<const int32_t> labels,
                         SoftmaxStats& stats) {
  check_rows("softmax_stats_merge", logits, labels.size(), stats);
  const int64_t n = logits.dim(1);
  const float* const x = logits.data<const float>();
  float* const max = stats.max.data<float>();
  float* const sum = stats.sum.data<float>();
  float* const label_logit = stats.label_logit.data<float>();
  parallel_for(logits.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const cpu::RowStats merged = cpu::merge_row(x + r * n, n, {max[r], sum[r]});
      max[r] = merged.max;
      sum[r] = merged.sum;
      const int32_t label = labels[static_cast<size_t>(r)];
      if (const int64_t column = label_column(label, first, n); column >= 0)
        label_logit[r] = x[r * n + column];
      else if (label == kIgnoreLabel)
        label_logit[r] = std::log(merged.sum) + merged.max;  // its loss is 0
    }
  });
}

void cross_entropy_losses(const SoftmaxStats& stats, std::span<float> losses) {
  if (static_cast<int64_t>(losses.size()) != stats.max.numel())
    fail_argument("cross_entropy_losses", "stats", stats.max,
                  std::to_string(losses.size()) + " rows");
  if (DryRun::current() != nullptr) {  // there are no logits, and no loss is bad
    std::ranges::fill(losses, 0.0f);
    return;
  }
  const float* const max = stats.max.data<const float>();
  const float* const sum = stats.sum.data<const float>();
  const float* const label_logit = stats.label_logit.data<const float>();
  for (size_t r = 0; r < losses.size(); ++r)
    losses[r] = std::log(sum[r]) + max[r] - label_logit[r];
}

void cross_entropy_dlogits(const TensorView& logits, int64_t first, std::span<const int32_t> labels,
                           const SoftmaxStats& stats, float scale, const TensorView& dlogits) {
  check_rows("cross_entropy_dlogits", logits, labels.size(), stats);
  const int64_t n = logits.dim(1);
  check_matrix("cross_entropy_dlogits", "dlogits", dlogits, logits.dim(0), n);
  const float* const x = logits.data<const float>();
  parallel_for(logits.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t label = labels[static_cast<size_t>(r)];
      const float row_scale = label == kIgnoreLabel ? 0.0f : scale;
      const cpu::RowStats row{stats.max.data<const float>()[r], stats.sum.data<const float>()[r]};
      const int64_t column = label_column(label, first, n);
      // Taken before the row is written, which may stand where the logits do.
      const float label_probability =
          column < 0 ? 0.0f : std::exp(x[r * n + column] - row.max) / row.sum;
      cpu::scaled_softmax_row({x + r * n, n, row, row_scale}, dlogits.rows(r, r + 1));
      if (column >= 0)
        store_element(dlogits, r * n + column, row_scale * (label_probability - 1.0f));
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
  check_matrix("argmax_rows", "logits", logits, static_cast<int64_t>(out.size()),
               logits.shape().ndim() == 2 ? logits.dim(1) : 0);
  const int64_t n = logits.dim(1);
  if (n == 0)
    fail_argument("argmax_rows", "logits", logits, "at least one column");
  parallel_for(logits.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t best = 0;
      float best_value = load_element(logits, r * n);
      for (int64_t j = 1; j < n; ++j) {
        const float value = load_element(logits, r * n + j);
        if (value > best_value) {
          best = j;
          best_value = value;
        }
      }
      out[static_cast<size_t>(r)] = static_cast<int32_t>(best);
    }
  });
}

}  // namespace shardtune::kernels
