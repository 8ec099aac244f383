// Rows are taken in blocks, vocabulary in the table's chunks. Where the head is leased whole, the
// logits of one block are held in f32 while its softmax sum is built, then turned into dlogits
// chunk by chunk: two products per chunk forward and back, none computed twice. Where chunks are
// leased one at a time, every block meets a chunk before the next chunk comes, and the logits are
// computed again for the gradient: the same operations on the same blocks, hence the same bits.
#include "models/head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#include "core/activity.h"
#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"

namespace shardtune::models {

namespace {

using autograd::Accumulate;

// Rows of a block: a head is read twice for each, so that fewer rows are bound by memory (128 took
// a fifth longer); the logits of one are 100 MB of a 49k vocabulary, a tenth of what torch holds.
constexpr int64_t kRowBlock = 512;

std::vector<int64_t> trained_rows(std::span<const int32_t> labels) {
  std::vector<int64_t> rows;
  for (size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] != kIgnoreLabel)
      rows.push_back(static_cast<int64_t>(t));
  }
  return rows;
}

UnitLease lease_chunk(const VocabularyTable& head, int64_t chunk) {
  return head.store().acquire(head.chunk(chunk).unit(), Pass::kForward);
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

// The head of one block of gathered rows. Chunks are leased by the caller and come in order.
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

  Tensor logits(int64_t c) const {
    Tensor result(Shape{x_.dim(0), head_.chunk(c).out_features()}, DType::kFloat32);
    head_.chunk(c).matmul(x_, result, Accumulate::kNo);
    return result;
  }

  void merge(int64_t c, const Tensor& logits) {
    kernels::softmax_stats_merge(logits, head_.chunk_begin(c), labels_, stats_);
  }

  /// After merge() of all chunks.
  void append_losses(std::vector<float>& losses) const {
    const size_t first = losses.size();
    losses.resize(first + rows_.size());
    kernels::cross_entropy_losses(stats_, std::span(losses).subspan(first));
  }

  /// Adds the chunk's part of the gradient of x, and the block's to that of a trained chunk
  /// (`weight`: where it is wanted). After merge() of all chunks.
  void backward(int64_t c, Tensor logits, float scale, const autograd::GradRef& weight) {
    if (c == 0)
      dx_ = Tensor(x_.shape(), DType::kFloat32);
    const Tensor dlogits(logits.shape(), x_.dtype());
    kernels::cross_entropy_dlogits(logits, head_.chunk_begin(c), labels_, stats_, scale, dlogits);
    logits = Tensor();
    if (weight.wanted()) {
      const autograd::GradSlot slot = weight.slot();
      kernels::gemm_over_tokens(dlogits, x_, slot.grad, slot.accumulate);
    }
    head_.chunk(c).matmul_transposed(dlogits, dx_, c == 0 ? Accumulate::kNo : Accumulate::kYes);
  }

  /// After backward() of all chunks.
  void scatter_gradient(const TensorView& dhidden) const {
    if (DryRun::current() != nullptr)
      return;
    const int64_t width = head_.hidden_size();
    for (int64_t i = 0; i < x_.dim(0); ++i) {
      std::copy_n(dx_.data<float>() + i * width, width,
                  dhidden.data<float>() + rows_[static_cast<size_t>(i)] * width);
    }
  }

 private:
  const VocabularyTable& head_;
  std::span<const int64_t> rows_;
  std::vector<int32_t> labels_;
  Tensor x_;
  Tensor dx_;
  kernels::SoftmaxStats stats_;
};

// What one walk over the head works on: trained rows in blocks.
struct HeadInput {
  const VocabularyTable& head;
  TensorView hidden;
  std::span<const int64_t> rows;
  std::span<const int32_t> labels;
  std::vector<autograd::GradRef> weights = {};  // by chunk; empty: frozen, or no gradient wanted

  autograd::GradRef weight(int64_t c) const {
    return weights.empty() ? autograd::GradRef() : weights[static_cast<size_t>(c)];
  }
  template <typename Visit>
  void for_each_block(const Visit& visit) const {
    for (size_t begin = 0; begin < rows.size(); begin += kRowBlock)
      visit(RowBlock(head, hidden,
                     rows.subspan(begin, std::min<size_t>(kRowBlock, rows.size() - begin)),
                     labels));
  }
};

// Both walks append the losses in order of rows and, where dhidden is given, write the gradient of
// scale * their sum to the rows of dhidden.
void walk_whole(const HeadInput& input, std::vector<float>& losses, float scale,
                const TensorView& dhidden) {
  const int64_t num_chunks = input.head.num_chunks();
  std::vector<UnitLease> leases;
  // The first block leases chunks as it comes to them: the next one is fetched meanwhile.
  const auto lease_up_to = [&](int64_t count) {
    while (std::ssize(leases) < count)
      leases.push_back(lease_chunk(input.head, std::ssize(leases)));
  };
  input.for_each_block([&](RowBlock block) {
    std::vector<Tensor> logits;
    for (int64_t c = 0; c < num_chunks; ++c) {
      lease_up_to(c + 1);
      logits.push_back(block.logits(c));
      block.merge(c, logits.back());
    }
    block.append_losses(losses);
    if (dhidden.empty())
      return;
    for (int64_t c = 0; c < num_chunks; ++c)
      block.backward(c, std::move(logits[static_cast<size_t>(c)]), scale, input.weight(c));
    block.scatter_gradient(dhidden);
  });
  lease_up_to(num_chunks);  // also without a trained row: the walk does not depend on data
}

void walk_by_chunk(const HeadInput& input, std::vector<float>& losses, float scale,
                   const TensorView& dhidden) {
  const int64_t num_chunks = input.head.num_chunks();
  std::vector<RowBlock> blocks;
  input.for_each_block([&](RowBlock block) { blocks.push_back(std::move(block)); });
  for (int64_t c = 0; c < num_chunks; ++c) {
    const UnitLease lease = lease_chunk(input.head, c);
    for (RowBlock& block : blocks)
      block.merge(c, block.logits(c));
  }
  for (const RowBlock& block : blocks)
    block.append_losses(losses);
  if (dhidden.empty())
    return;
  for (int64_t c = 0; c < num_chunks; ++c) {
    const UnitLease lease = lease_chunk(input.head, c);
    for (RowBlock& block : blocks)
      block.backward(c, block.logits(c), scale, input.weight(c));
  }
  for (const RowBlock& block : blocks)
    block.scatter_gradient(dhidden);
}

void walk_head(HeadWalk walk, const HeadInput& input, std::vector<float>& losses, float scale,
               const TensorView& dhidden) {
  if (walk == HeadWalk::kWhole)
    walk_whole(input, losses, scale, dhidden);
  else
    walk_by_chunk(input, losses, scale, dhidden);
}

}  // namespace

HeadWalk choose_head_walk(const VocabularyTable& head) {
  return head.num_bytes() <= head.store().max_held_bytes() ? HeadWalk::kWhole : HeadWalk::kByChunk;
}

std::vector<UnitId> head_units(const VocabularyTable& head, autograd::Recording recording) {
  const bool twice =
      recording == autograd::Recording::kOn && choose_head_walk(head) == HeadWalk::kByChunk;
  std::vector<UnitId> units;
  for (int pass = 0; pass < (twice ? 2 : 1); ++pass) {
    for (int64_t c = 0; c < head.num_chunks(); ++c)
      units.push_back(head.chunk(c).unit());
  }
  return units;
}

HeadLoss head_cross_entropy(Tape& tape, const VocabularyTable& head, const Variable& hidden,
                            std::span<const int32_t> labels, float scale) {
  return head_cross_entropy(tape, head, hidden, labels, scale, choose_head_walk(head));
}

HeadLoss head_cross_entropy(Tape& tape, const VocabularyTable& head, const Variable& hidden,
                            std::span<const int32_t> labels, float scale, HeadWalk walk) {
  SHARDTUNE_ASSERT(static_cast<int64_t>(labels.size()) <= hidden.dim(0));
  const PurposeScope purpose(Purpose::kHead);
  const ActivityScope activity(Activity::kHead);
  const std::vector<int64_t> rows = trained_rows(labels);
  HeadLoss loss;
  loss.num_trained_tokens = static_cast<int64_t>(rows.size());
  HeadInput input{head, hidden.value(), rows, labels};
  for (int64_t c = 0; head.is_trained() && tape.recording() && c < head.num_chunks(); ++c)
    input.weights.push_back(tape.parameter(head.chunk(c).components().front()).grad_ref());
  if (tape.needs_grad({hidden}) || !input.weights.empty())
    loss.hidden_grad = Tensor::zeros(hidden.shape(), DType::kFloat32);
  std::vector<float> losses;
  walk_head(walk, input, losses, scale, loss.hidden_grad);
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
  walk_head(choose_head_walk(head), {head, hidden, rows, labels}, losses, 1.0f, {});
  return losses;
}

Tensor head_logits(const VocabularyTable& head, const TensorView& hidden) {
  const int64_t n = hidden.dim(0);
  Tensor logits(Shape{n, head.vocab_size()}, DType::kFloat32);
  for (int64_t c = 0; c < head.num_chunks(); ++c) {
    const UnitLease lease = lease_chunk(head, c);
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

void head_argmax(const VocabularyTable& head, const TensorView& hidden, int64_t num_ids,
                 std::span<int32_t> ids) {
  const int64_t n = hidden.dim(0);
  SHARDTUNE_ASSERT(static_cast<int64_t>(ids.size()) == n && num_ids > 0);
  std::vector<float> best(static_cast<size_t>(n));
  std::vector<int32_t> winners(static_cast<size_t>(n));
  for (int64_t c = 0; c < head.num_chunks() && head.chunk_begin(c) < num_ids; ++c) {
    const UnitLease lease = lease_chunk(head, c);
    const int64_t width = std::min(head.chunk(c).out_features(), num_ids - head.chunk_begin(c));
    Tensor part(Shape{n, width}, DType::kFloat32);
    head.chunk(c).matmul_rows(hidden, 0, width, part, Accumulate::kNo);
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
