// The vector forms behind attention.cpp. Keys and values are packed first, once per block of
// kKeyBlock tokens and K/V head, as f32 tiles that the products read with unit stride; then one
// call is one thread's task: a block of queries forward, a whole (sample, head) backward. Legend: T
// tokens, A query heads, Hk K/V heads, D head size, W its padded size (zeros behind D), P prefix
// rows.
#pragma once

#include <cstdint>

#include "kernels/attention.h"

namespace shardtune::kernels::cpu {

inline constexpr int64_t kQueryBlock = 64;
inline constexpr int64_t kKeyBlock = 64;
/// Columns of a product come in multiples of this (two AVX-512 vectors).
inline constexpr int64_t kColumnMultiple = 32;

/// A run of tokens of one sample, and where its packed blocks begin.
struct SampleRange {
  int64_t begin = 0, end = 0;  // tokens
  int64_t first_block = 0;     // of packed key blocks
  int64_t length() const { return end - begin; }
};

/// Tiles of every (block, K/V head), `stride` floats each: forward k^T [W, kKeyBlock] and
/// v [kKeyBlock, W]; backward k^T, v^T [W, kKeyBlock] and k [kKeyBlock, W]. Prefix blocks first.
struct PackedKeys {
  float* data = nullptr;
  int64_t num_kv_heads = 0, padded_dim = 0, tiles = 0, num_prefix = 0;
  int64_t tile_floats = 0;  // W * kKeyBlock, or half of that for tiles of bf16

  float* block(int64_t index, int64_t kv_head) const {
    return data + (index * num_kv_heads + kv_head) * tiles * tile_floats;
  }
  int64_t num_prefix_blocks() const { return (num_prefix + kKeyBlock - 1) / kKeyBlock; }
};

enum class PackFor { kForward, kBackward };
/// Floats that a task of each kind allocates: packing a block, a block of queries forward, a whole
/// (sample, head) backward.
inline int64_t pack_scratch_floats(int64_t padded) { return kKeyBlock * padded; }
inline int64_t query_scratch_floats(int64_t padded) {
  return 2 * kQueryBlock * padded + kQueryBlock * kKeyBlock;
}
inline int64_t head_scratch_floats(int64_t padded, int64_t length) {
  return length * (3 * padded + 2) + 2 * kQueryBlock * kKeyBlock;
}
/// Packs rows [begin, end) of k and v [rows, Hk*D], at most kKeyBlock, as block `index`.
struct PackBlock {
  TensorView k, v;
  int64_t begin = 0, end = 0, index = 0;
};
void pack_key_block(const PackBlock& block, const PackedKeys& keys, PackFor pass);

/// out and lse of queries [first, first + kQueryBlock) of a sample and one head.
void attention_query_block(const AttentionForward& args, const PackedKeys& keys,
                           const SampleRange& sample, int64_t head, int64_t first);

/// Sums of one query head before those of a K/V head's group are added: token rows [A, T, W],
/// prefix rows [S, A, P, W].
struct KeyGradientParts {
  float* dk = nullptr;
  float* dv = nullptr;
  float* dprefix_k = nullptr;
  float* dprefix_v = nullptr;
};
/// dq of one sample and head, and its part of the gradients of keys and values.
struct HeadTask {
  SampleRange sample;
  int64_t sample_index = 0, head = 0;
};
void attention_backward_head(const AttentionBackward& args, const PackedKeys& keys,
                             const HeadTask& task, const KeyGradientParts& parts);

/// out [D] = sum over `count` parts, `stride` floats apart, in order.
struct PartSum {
  const float* first = nullptr;
  int64_t stride = 0, count = 0;
};
void sum_parts(const PartSum& inner, int64_t outer_stride, int64_t outer_count,
               const TensorView& out);

/// out of all query heads of one K/V head for one sequence; b indexes q and out.
void attention_decode_head(const AttentionShape& shape, const CachedSequence& sequence,
                           const TensorView& q, const TensorView& out, int64_t b, int64_t kv_head);

}  // namespace shardtune::kernels::cpu
