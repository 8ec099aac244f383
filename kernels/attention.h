// Causal softmax attention with grouped K/V heads, tiled with a running softmax: O(T) memory,
// block-diagonal over samples, with an optional prefix of K/V that every token of every sample
// sees. Also the one-token form over cached K/V for generation.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

/// Shapes  A query heads, Hk K/V heads (A a multiple of Hk), D head size, P prefix rows, S samples
struct AttentionShape {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0.0f;
  int64_t window = 0;  // 0: full causal; W: query i sees keys j with i-W < j <= i (prefix always)
};

/// out [T,A*D] = softmax(scale * q k^T, causal inside each sample) v; lse [T,A] f32 keeps the log
/// of the softmax sum for backward (may be empty when no backward follows).
/// Shapes  q [T,A*D]; k, v [T,Hk*D]; prefix_k, prefix_v [P,Hk*D] or empty
/// Dtypes  q, k, v, prefix, out the same, f32 or bf16; scores, softmax and sums in f32
/// Layout  sample s owns tokens [sample_offsets[s], sample_offsets[s+1])
/// Exact   the same bits for any number of threads
/// Source  Dao 2023, FlashAttention-2, arXiv:2307.08691 (tiling; own schedule)
struct AttentionForward {
  AttentionShape shape;
  std::span<const int32_t> sample_offsets;
  TensorView q, k, v, prefix_k, prefix_v;
  TensorView out, lse;
};
void attention(const AttentionForward& args);

/// Gradients of all inputs, written (not added). dprefix_k/v [P,Hk*D] f32, summed over samples in
/// order; empty when there is no prefix.
/// Dtypes  dout, dq, dk, dv as q
struct AttentionBackward {
  AttentionForward forward;  // q, k, v, prefix, out, lse of the forward pass
  TensorView dout;
  TensorView dq, dk, dv, dprefix_k, dprefix_v;
};
void attention_backward(const AttentionBackward& args);

/// One sequence of a decode step: cached keys and values of `length` tokens, newest included.
struct CachedSequence {
  const void* k = nullptr;  // [length, Hk*D], row stride Hk*D, dtype as q
  const void* v = nullptr;
  int64_t length = 0;
};
/// out [B,A*D] for one new token of each of B sequences, q [B,A*D] rotated; the keys and values of
/// the new token are in the cache already (a prefix stands at its front).
void attention_decode(const AttentionShape& shape, std::span<const CachedSequence> sequences,
                      const TensorView& q, const TensorView& out);

/// The plain fp32 forms, kept as oracles.
void attention_reference(const AttentionForward& args);
void attention_backward_reference(const AttentionBackward& args);

}  // namespace shardtune::kernels
