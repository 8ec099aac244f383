// What the f32 and the bf16 form of attention share: checks, the cut into tasks, and the sums of
// the gradients of keys and values over query heads.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "kernels/attention.h"
#include "kernels/attention_cpu.h"

namespace shardtune::kernels {

/// ArgumentError when shapes, dtypes or sample offsets do not fit.
void check_attention_shape(const AttentionShape& shape);
void check_attention(const AttentionForward& args);
void check_attention_backward(const AttentionBackward& args);

/// Packed keys and values of all samples, prefix blocks first.
struct PackedAttention {
  Tensor storage;
  cpu::PackedKeys keys;
  std::vector<cpu::SampleRange> samples;  // those with tokens
  std::vector<cpu::PackBlock> blocks;     // what to pack, in order of index
};
/// Plans the blocks and allocates `tiles` tiles of `dtype` for each; the caller packs.
PackedAttention plan_packing(const AttentionForward& args, int64_t tiles, DType dtype);

/// Tokens of the longest sample.
int64_t longest_sample(const PackedAttention& packed);

/// Forward tasks, the long ones first, so that threads finish together.
struct QueryBlockTask {
  int64_t sample, head, first;
};
std::vector<QueryBlockTask> query_block_tasks(const std::vector<cpu::SampleRange>& samples,
                                              int64_t num_heads);
/// Backward tasks, the long ones first.
std::vector<cpu::HeadTask> head_tasks(const std::vector<cpu::SampleRange>& samples,
                                      int64_t num_heads);

/// Gradients of keys and values by query head, before the heads of a group are added.
class KeyGradientSums {
 public:
  KeyGradientSums(const AttentionBackward& args, const PackedAttention& packed);
  const cpu::KeyGradientParts& parts() const { return parts_; }
  /// Writes dk, dv, dprefix_k and dprefix_v of args.
  void reduce(const AttentionBackward& args) const;

 private:
  int64_t tokens_, num_prefix_, num_samples_, padded_dim_;
  Tensor token_parts_, prefix_parts_;
  cpu::KeyGradientParts parts_;
};

}  // namespace shardtune::kernels
