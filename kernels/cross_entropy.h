// Softmax cross-entropy over logits that come in vocabulary chunks. Per row a running maximum and
// sum are merged chunk by chunk in order, so that storing the logits or computing them again gives
// the same bits.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"

namespace shardtune::kernels {

/// Running state of R rows, empty at first. A row labelled kIgnoreLabel has loss 0 and dlogits 0;
/// any other negative label is an ArgumentError.
struct SoftmaxStats {
  Tensor max;          // [R] f32
  Tensor sum;          // [R] f32, of exp(logit - max)
  Tensor label_logit;  // [R] f32
  explicit SoftmaxStats(int64_t rows);
};

/// Merges logits [R,Vc] f32 of vocabulary entries [first, first + Vc).
void softmax_stats_merge(const TensorView& logits, int64_t first, std::span<const int32_t> labels,
                         SoftmaxStats& stats);
/// losses[r] = log(sum) + max - label_logit, f32.
void cross_entropy_losses(const SoftmaxStats& stats, std::span<float> losses);
/// dlogits [R,Vc] = scale * (softmax - one_hot(label)), f32 or bf16, may alias an f32 logits.
void cross_entropy_dlogits(const TensorView& logits, int64_t first, std::span<const int32_t> labels,
                           const SoftmaxStats& stats, float scale, const TensorView& dlogits);
/// Sum in fp64 in index order, for losses.
double sum_in_order(std::span<const float> values);
/// Index of the largest value of each row of logits [R,V] (the first among equals).
void argmax_rows(const TensorView& logits, std::span<int32_t> out);

}  // namespace shardtune::kernels
