// A batch rounded up to padded_tokens(): the padding is one more sample that nobody labels, so
// attention keeps it apart.
#pragma once

#include <memory>

#include "core/token_batch.h"

namespace shardtune::models {

/// Copy of `batch` with padding tokens (id 0) as a last sample; num_trained_tokens is unchanged.
std::shared_ptr<TokenBatch> pad_batch(const TokenBatch& batch);

}  // namespace shardtune::models
