// The batch as the layers see it where hooks put virtual tokens before each sample (hook 2): rows
// are added, the tokens' positions move, and what leaves the layers is the tokens' rows alone.
// With a cache only samples at their first tokens get virtual rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/token_batch.h"
#include "models/model.h"

namespace shardtune::models {

struct LayerBatch {
  std::shared_ptr<TokenBatch> batch;
  /// Rows of virtual tokens, num_virtual_tokens for each sample that has them, and those samples.
  std::vector<int32_t> virtual_rows;
  std::vector<int32_t> samples;
  /// The row of each of the caller's tokens (and of its padding); empty: they are the same.
  std::vector<int32_t> token_rows;
};

/// Padded unless a cache is there.
/// Errors  UnsupportedError: virtual tokens of two hooks
LayerBatch layer_batch(const ForwardOptions& options);

/// x [T,H] with the virtual tokens' embeddings, which are those of every sample or of every task in
/// turn, added in their rows.
/// Errors  DataError: a task that is not there
Variable place_virtual_rows(Tape& tape, const Variable& x, const Variable& embeddings,
                            const LayerBatch& layers);

}  // namespace shardtune::models
