// One micro-batch as the model sees it: samples laid end to end in one flat token axis, no padding
// between them. Attention is block-diagonal over samples; rows exist only in the data plan.
#pragma once

#include <cstdint>
#include <vector>

namespace shardtune {

/// Label of a position that is not trained.
inline constexpr int32_t kIgnoreLabel = -100;

/// Shapes  T = tokens, S = samples; all per-token vectors have T entries.
/// Layout  sample s owns tokens [sample_offsets[s], sample_offsets[s+1]); sample_offsets has S+1
///         entries, begins with 0 and ends with T.
struct TokenBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;  // position in the sample, from 0
  std::vector<int32_t> labels;     // next token of the same sample, or kIgnoreLabel
  std::vector<int32_t> sample_offsets;
  std::vector<uint64_t> sample_ids;    // S entries: stable id of the sample in the data set
  std::vector<int32_t> token_indices;  // index of the token in its sample (keys random numbers)
  std::vector<int32_t> task_ids;       // S entries, or none: the task of each sample
  int64_t num_trained_tokens = 0;      // labels that are not kIgnoreLabel

  int64_t num_tokens() const { return static_cast<int64_t>(ids.size()); }
  int64_t num_samples() const { return static_cast<int64_t>(sample_ids.size()); }
};

}  // namespace shardtune
