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
#include <numeric>
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

/// Columns from `column` on of some rows, as many as `to` has.
void gather_rows(const TensorView& from, std::span<const int64_t> rows, int64_t column,
                 const TensorView& to) {
  if (DryRun::current() != nullptr)
    return;
  const int64_t element = size_of(from.dtype());
  const auto row_bytes = static_cast<size_t>(to.dim(1) * element);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(
        static_cast<std::byte*>(to.raw()) + i * row_bytes,
        static_cast<const std::byte*>(from.raw()) + (rows[i] * from.dim(1) + column) * element,
        row_bytes);
  }
}

/// Rows of the hidden state: what meets the table, and what its added columns (empty: none).
struct HeadRows {
  Tensor x;
  Tensor u;

  HeadRows(const VocabularyTable& head, const TensorView& hidden, std::span<const int64_t> rows) {
    const int64_t n = std::ssize(rows), width = head.hidden_size();
    SHARDTUNE_ASSERT(hidden.dim(1) == width || hidden.dim(1) == width + head.num_columns());
    x = Tensor(Shape{n, width}, hidden.dtype());
    gather_rows(hidden, rows, 0, x);
    if (hidden.dim(1) == width)
      return;
    u = Tensor(Shape{n, hidden.dim(1) - width}, hidden.dtype());
    gather_rows(hidden, rows, width, u);
  }
};

TensorView columns_of(const VocabularyTable& head, int64_t c, DType dtype) {
  const ParameterId id = head.columns(c);
  return dtype == DType::kBFloat16 ? head.store().value_bf16(id) : head.store().value(id);
}

/// The first logits.dim(1) logits of a chunk, which is leased.
void chunk_logits(const VocabularyTable& head, int64_t c, const HeadRows& rows,
                  const TensorView& logits) {
  const int64_t width = logits.dim(1);
  if (width == head.chunk(c).out_features())
    head.chunk(c).matmul(rows.x, logits, Accumulate::kNo);
  else
    head.chunk(c).matmul_rows(rows.x, 0, width, logits, Accumulate::kNo);
  if (!rows.u.empty())
    kernels::gemm(rows.u, columns_of(head, c, rows.u.dtype()).rows(0, width),
                  kernels::Transpose::kYes, logits, Accumulate::kYes);
}

std::vector<int64_t> all_rows(const TensorView& hidden) {
  std::vector<int64_t> rows(static_cast<size_t>(hidden.dim(0)));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return rows;
}

// The head of one block of gathered rows. Chunks are leased by the caller and come in order.
class RowBlock {
 public:
  RowBlock(const VocabularyTable& head, const TensorView& hidden, std::span<const int64_t> rows,
           std::span<const int32_t> labels)
      : head_(head),
        rows_(rows),
        values_(head, hidden, rows),
        stats_(static_cast<int64_t>(rows.size())) {
    for (const int64_t row : rows)
      labels_.push_back(labels[static_cast<size_t>(row)]);
  }

  Tensor logits(int64_t c) const {
    Tensor result(Shape{values_.x.dim(0), head_.chunk(c).out_features()}, DType::kFloat32);
    chunk_logits(head_, c, values_, result);
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

  /// Adds the chunk's part of the gradient of x and u, and the block's to that of a trained chunk
  /// and of its columns (where it is wanted). After merge() of all chunks.
  void backward(int64_t c, Tensor logits, float scale, const autograd::GradRef& weight,
                const autograd::GradRef& columns) {
    if (c == 0)
      dx_ = Tensor(values_.x.shape(), DType::kFloat32);
    const Tensor dlogits(logits.shape(), values_.x.dtype());
    kernels::cross_entropy_dlogits(logits, head_.chunk_begin(c), labels_, stats_, scale, dlogits);
    logits = Tensor();
    if (weight.wanted()) {
      const autograd::GradSlot slot = weight.slot();
      kernels::gemm_over_tokens(dlogits, values_.x, slot.grad, slot.accumulate);
    }
    const Accumulate accumulate = c == 0 ? Accumulate::kNo : Accumulate::kYes;
    head_.chunk(c).matmul_transposed(dlogits, dx_, accumulate);
    if (values_.u.empty())
      return;
    if (columns.wanted()) {
      const autograd::GradSlot slot = columns.slot();
      kernels::gemm_over_tokens(dlogits, values_.u, slot.grad, slot.accumulate);
    }
    if (c == 0)
      du_ = Tensor(values_.u.shape(), DType::kFloat32);
    kernels::gemm(dlogits, columns_of(head_, c, dlogits.dtype()), kernels::Transpose::kNo, du_,
                  accumulate);
  }

  /// After backward() of all chunks.
  void scatter_gradient(const TensorView& dhidden) const {
    if (DryRun::current() != nullptr)
      return;
    const int64_t width = head_.hidden_size(), columns = du_.empty() ? 0 : du_.dim(1);
    for (int64_t i = 0; i < values_.x.dim(0); ++i) {
      float* const row = dhidden.data<float>() + rows_[static_cast<size_t>(i)] * dhidden.dim(1);
      std::copy_n(dx_.data<float>() + i * width, width, row);
      if (columns > 0)
        std::copy_n(du_.data<float>() + i * columns, columns, row + width);
    }
  }

 private:
  const VocabularyTable& head_;
  std::span<const int64_t> rows_;
  std::vector<int32_t> labels_;
  HeadRows values_;
  Tensor dx_;
  Tensor du_;
  kernels::SoftmaxStats stats_;
};

// What one walk over the head works on: trained rows in blocks.
struct HeadInput {
  const VocabularyTable& head;
  TensorView hidden;
  std::span<const int64_t> rows;
  std::span<const int32_t> labels;
  std::vector<autograd::GradRef> weights = {};  // by chunk; empty: frozen, or no gradient wanted
  std::vector<autograd::GradRef> columns = {};  // the same of added columns

  static autograd::GradRef at(const std::vector<autograd::GradRef>& chunks, int64_t c) {
    return chunks.empty() ? autograd::GradRef() : chunks[static_cast<size_t>(c)];
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
      block.backward(c, std::move(logits[static_cast<size_t>(c)]), scale,
                     HeadInput::at(input.weights, c), HeadInput::at(input.columns, c));
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
      block.backward(c, block.logits(c), scale, HeadInput::at(input.weights, c),
                     HeadInput::at(input.columns, c));
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
  const bool has_columns = hidden.dim(1) > head.hidden_size();
  for (int64_t c = 0; has_columns && tape.recording() && c < head.num_chunks(); ++c)
    input.columns.push_back(tape.parameter(head.columns(c)).grad_ref());
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
  const HeadRows rows(head, hidden, all_rows(hidden));
  for (int64_t c = 0; c < head.num_chunks(); ++c) {
    const UnitLease lease = lease_chunk(head, c);
    const int64_t width = head.chunk(c).out_features();
    Tensor part(Shape{n, width}, DType::kFloat32);
    chunk_logits(head, c, rows, part);
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
  const HeadRows rows(head, hidden, all_rows(hidden));
  for (int64_t c = 0; c < head.num_chunks() && head.chunk_begin(c) < num_ids; ++c) {
    const UnitLease lease = lease_chunk(head, c);
    const int64_t width = std::min(head.chunk(c).out_features(), num_ids - head.chunk_begin(c));
    Tensor part(Shape{n, width}, DType::kFloat32);
    chunk_logits(head, c, rows, part);
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
