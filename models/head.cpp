// Rows are taken in blocks, vocabulary in the table's chunks. The logits of one block are held
// in f32 while its softmax sum is built, then turned into dlogits chunk by chunk: two products
// per chunk forward and back, none computed twice.
#include "models/head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"

namespace shardtune::models {

namespace {

using autograd::Accumulate;

// Rows of a block: big enough for efficient products, small enough that a block's logits of a
// 128k vocabulary stay at 64 MB.
constexpr int64_t kRowBlock = 128;

std::vector<int64_t> trained_rows(std::span<const int32_t> labels) {
  std::vector<int64_t> rows;
  for (size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] != kIgnoreLabel)
      rows.push_back(static_cast<int64_t>(t));
  }
  return rows;
}

// All chunks of the head, leased for one walk over the rows.
std::vector<UnitLease> lease_head(const VocabularyTable& head, Pass pass) {
  std::vector<UnitLease> leases;
  for (int64_t c = 0; c < head.num_chunks(); ++c)
    leases.push_back(head.store().acquire(head.chunk(c).unit(), pass));
  return leases;
}

void gather_rows(const TensorView& from, std::span<const int64_t> rows, const TensorView& to) {
  if (DryRun::current() != nullptr)
    return;
  const size_t row_bytes = static_cast<size_t>(from.dim(1) * size_of(from.dtype()));
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(
        static_cast<std::byte*>(to.raw()) + i * row_bytes,
        static_cast<const std::byte*>(from.raw()) + static_cast<size_t>(rows[i]) * row_bytes,
        row_bytes);
  }
}

// The head of one block of gathered rows.
class RowBlock {
 public:
  RowBlock(const VocabularyTable& head, const TensorView& hidden, std::span<const int64_t> rows,
           std::span<const int32_t> labels)
      : head_(head), rows_(rows), stats_(static_cast<int64_t>(rows.size())) {
    const int64_t n = static_cast<int64_t>(rows.size());
    x_ = Tensor(Shape{n, head.hidden_size()}, hidden.dtype());
    gather_rows(hidden, rows, x_);
    for (const int64_t row : rows)
      labels_.push_back(labels[static_cast<size_t>(row)]);
  }

  void forward(std::vector<float>& losses) {
    const int64_t n = x_.dim(0);
    for (int64_t c = 0; c < head_.num_chunks(); ++c) {
      logits_.emplace_back(Shape{n, head_.chunk(c).out_features()}, DType::kFloat32);
      head_.chunk(c).matmul(x_, logits_.back(), Accumulate::kNo);
      kernels::softmax_stats_merge(logits_.back(), head_.chunk_begin(c), labels_, stats_);
    }
    const size_t first = losses.size();
    losses.resize(first + static_cast<size_t>(n));
    kernels::cross_entropy_losses(stats_, std::span(losses).subspan(first));
  }

  void backward(float scale, const TensorView& dhidden) {
    const int64_t n = x_.dim(0);
    Tensor dx(Shape{n, head_.hidden_size()}, DType::kFloat32);
    for (int64_t c = 0; c < head_.num_chunks(); ++c) {
      Tensor dlogits(logits_[c].shape(), x_.dtype());
      kernels::cross_entropy_dlogits(logits_[c], head_.chunk_begin(c), labels_, stats_, scale,
                                     dlogits);
      logits_[c] = Tensor();
      head_.chunk(c).matmul_transposed(dlogits, dx, c == 0 ? Accumulate::kNo : Accumulate::kYes);
    }
    if (DryRun::current() != nullptr)
      return;
    const int64_t width = head_.hidden_size();
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(dx.data<float>() + i * width, width,
                  dhidden.data<float>() + rows_[static_cast<size_t>(i)] * width);
    }
  }

 private:
  const VocabularyTable& head_;
  std::span<const int64_t> rows_;
  std::vector<int32_t> labels_;
  Tensor x_;
  std::vector<Tensor> logits_;
  kernels::SoftmaxStats stats_;
};

template <typename Visit>
void for_each_block(std::span<const int64_t> rows, const Visit& visit) {
  for (size_t begin = 0; begin < rows.size(); begin += kRowBlock)
    visit(rows.subspan(begin, std::min<size_t>(kRowBlock, rows.size() - begin)));
}

}  // namespace

HeadLoss head_cross_entropy(Tape& tape, const VocabularyTable& head, const Variable& hidden,
                            std::span<const int32_t> labels, float scale) {
  SHARDTUNE_ASSERT(static_cast<int64_t>(labels.size()) <= hidden.dim(0));
  const PurposeScope purpose(Purpose::kHead);
  const std::vector<int64_t> rows = trained_rows(labels);
  const bool backward = tape.needs_grad({hidden});
  HeadLoss loss;
  loss.num_trained_tokens = static_cast<int64_t>(rows.size());
  if (backward)
    loss.hidden_grad = Tensor::zeros(hidden.shape(), DType::kFloat32);
  std::vector<float> losses;
  const std::vector<UnitLease> leases = lease_head(head, Pass::kForward);
  for_each_block(rows, [&](std::span<const int64_t> block_rows) {
    RowBlock block(head, hidden.value(), block_rows, labels);
    block.forward(losses);
    if (backward)
      block.backward(scale, loss.hidden_grad);
  });
  for (size_t i = 0; i < losses.size() && loss.first_non_finite < 0; ++i) {
    if (!std::isfinite(losses[i]))
      loss.first_non_finite = rows[i];
  }
  loss.loss_sum = kernels::sum_in_order(losses);
  return loss;
}

std::vector<float> head_token_losses(const VocabularyTable& head, const TensorView& hidden,
                                     std::span<const int32_t> labels) {
  const std::vector<int64_t> rows = trained_rows(labels);
  std::vector<float> losses;
  const std::vector<UnitLease> leases = lease_head(head, Pass::kForward);
  for_each_block(rows, [&](std::span<const int64_t> block_rows) {
    RowBlock(head, hidden, block_rows, labels).forward(losses);
  });
  return losses;
}

Tensor head_logits(const VocabularyTable& head, const TensorView& hidden) {
  const int64_t n = hidden.dim(0);
  Tensor logits(Shape{n, head.vocab_size()}, DType::kFloat32);
  const std::vector<UnitLease> leases = lease_head(head, Pass::kForward);
  for (int64_t c = 0; c < head.num_chunks(); ++c) {
    const int64_t width = head.chunk(c).out_features();
    Tensor part(Shape{n, width}, DType::kFloat32);
    head.chunk(c).matmul(hidden, part, Accumulate::kNo);
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(part.data<float>() + i * width, width,
                  logits.data<float>() + i * head.vocab_size() + head.chunk_begin(c));
    }
  }
  return logits;
}

void head_argmax(const VocabularyTable& head, const TensorView& hidden, std::span<int32_t> ids) {
  const int64_t n = hidden.dim(0);
  SHARDTUNE_ASSERT(static_cast<int64_t>(ids.size()) == n);
  const std::vector<UnitLease> leases = lease_head(head, Pass::kForward);
  std::vector<float> best(static_cast<size_t>(n));
  std::vector<int32_t> winners(static_cast<size_t>(n));
  for (int64_t c = 0; c < head.num_chunks(); ++c) {
    const int64_t width = head.chunk(c).out_features();
    Tensor part(Shape{n, width}, DType::kFloat32);
    head.chunk(c).matmul(hidden, part, Accumulate::kNo);
    kernels::argmax_rows(part, winners);
    for (int64_t i = 0; i < n; ++i) {
      const float value = part.data<float>()[i * width + winners[i]];
      // Strictly larger: the first among equals wins over the chunks as well.
      if (c == 0 || value > best[i]) {
        best[i] = value;
        ids[i] = static_cast<int32_t>(head.chunk_begin(c) + winners[i]);
      }
    }
  }
}

}  // namespace shardtune::models
