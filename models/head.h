// The language-model head: logits for chosen rows, and head + cross-entropy in one operation that
// never holds T x V logits and skips positions that are not trained.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "autograd/tape.h"
#include "core/token_batch.h"
#include "models/vocabulary_table.h"

namespace shardtune::models {

using autograd::Tape;
using autograd::Variable;

/// logits [n,V] f32 of hidden [n,H], here and below also with the columns of
/// Model::add_head_columns behind them.
Tensor head_logits(const VocabularyTable& head, const TensorView& hidden);

/// For each row the id below num_ids of the largest logit (the first among equals), without keeping
/// the logits. Tables may have more rows than the tokenizer has tokens.
void head_argmax(const VocabularyTable& head, const TensorView& hidden, int64_t num_ids,
                 std::span<int32_t> ids);

struct HeadLoss {
  double loss_sum = 0.0;  // negative log-likelihood summed over trained positions, fp64
  int64_t num_trained_tokens = 0;
  int64_t first_non_finite = -1;  // token whose loss is NaN or infinite, -1 when none
  Tensor hidden_grad;             // [T,H] f32, gradient of scale * loss_sum (when recording): the
                                  // seed of Tape::backward(hidden, ...)
};

/// How the chunks of the head are leased for a loss. kWhole: all of them while blocks of rows go
/// by, so that every logit is computed once. kByChunk: one at a time, twice when a gradient is
/// wanted (softmax sums first, then gradients), for heads that a rank cannot hold whole. Same bits.
enum class HeadWalk { kWhole, kByChunk };
/// By the size of the head and what the store may keep leased (ParameterStore::max_held_bytes).
HeadWalk choose_head_walk(const VocabularyTable& head);
/// The units that head_cross_entropy leases, in order; kOn: on a recording tape.
std::vector<UnitId> head_units(const VocabularyTable& head, autograd::Recording recording);

/// Loss of hidden [T,H] against labels [T] (kIgnoreLabel = not trained). When the tape records, the
/// gradient of hidden is computed in the same walk, multiplied by `scale` (1 / trained tokens of
/// the whole step); that of a trained head goes to the tape's parameters.
HeadLoss head_cross_entropy(Tape& tape, const VocabularyTable& head, const Variable& hidden,
                            std::span<const int32_t> labels, float scale);
/// The same with the walk given.
HeadLoss head_cross_entropy(Tape& tape, const VocabularyTable& head, const Variable& hidden,
                            std::span<const int32_t> labels, float scale, HeadWalk walk);

/// Loss of every labelled position, in order of tokens (evaluation by choice).
std::vector<float> head_token_losses(const VocabularyTable& head, const TensorView& hidden,
                                     std::span<const int32_t> labels);

}  // namespace shardtune::models
