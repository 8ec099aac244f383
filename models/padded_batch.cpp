#include "models/padded_batch.h"

#include "core/checked.h"
#include "models/model.h"

namespace shardtune::models {

int64_t padded_tokens(int64_t num_tokens) {
  return round_up(num_tokens, num_tokens <= 64 ? 8 : 64);
}

std::shared_ptr<TokenBatch> pad_batch(const TokenBatch& batch) {
  auto padded = std::make_shared<TokenBatch>(batch);
  const int64_t tokens = batch.num_tokens();
  const int64_t target = padded_tokens(tokens);
  if (target == tokens)
    return padded;
  for (int64_t i = 0; i < target - tokens; ++i) {
    padded->ids.push_back(0);
    padded->labels.push_back(kIgnoreLabel);
    padded->positions.push_back(static_cast<int32_t>(i));
    padded->token_indices.push_back(static_cast<int32_t>(i));
  }
  padded->sample_offsets.push_back(static_cast<int32_t>(target));
  padded->sample_ids.push_back(~uint64_t{0});
  if (!padded->task_ids.empty())
    padded->task_ids.push_back(0);
  return padded;
}

}  // namespace shardtune::models
