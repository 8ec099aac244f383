// Differentiable operations over kernels/. "In place" operations change their first input's buffer
// and so take only results of products (see Tape::result_in_place). Shapes: T tokens, H features.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "autograd/tape.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/rope.h"

namespace shardtune::autograd {

/// a + b in a's dtype; the gradient passes to both.
Variable add(Tape& tape, const Variable& a, const Variable& b);
/// scale * x.
Variable scaled(Tape& tape, const Variable& x, float scale);
/// Elementwise product in a's dtype; b has a's shape or is one row [N] for a [T,N].
Variable mul(Tape& tape, const Variable& a, const Variable& b);
/// x in another dtype.
Variable cast(Tape& tape, const Variable& x, DType dtype);

/// f(x), in x's dtype.
Variable activate(Tape& tape, kernels::Activation activation, const Variable& x);

/// What keys a mask; owns nothing but the small per-token tables of the batch.
struct DropoutTokens {
  std::vector<uint64_t> sample_of_token;
  std::vector<int32_t> index_in_sample;
};
/// x with elements dropped at probability p and the rest divided by 1 - p.
Variable dropout(Tape& tape, const Variable& x, float p, uint64_t seed,
                 std::shared_ptr<const DropoutTokens> tokens);

/// Root-mean-square norm with a weight [H] f32 of the leased unit, frozen or trained. Result in
/// `dtype`.
struct RmsNormOptions {
  ParameterId weight = kNoParameter;
  float eps = 1e-6f;
  DType dtype = DType::kFloat32;
};
Variable rms_norm(Tape& tape, const Variable& x, const RmsNormOptions& options);

/// Layer norm with a weight and bias [H] f32 of the leased unit, each frozen or trained. Result in
/// `dtype`.
struct LayerNormOptions {
  ParameterId weight = kNoParameter;
  ParameterId bias = kNoParameter;
  float eps = 1e-5f;
  DType dtype = DType::kFloat32;
};
Variable layer_norm(Tape& tape, const Variable& x, const LayerNormOptions& options);

/// Rotary embedding of x [T, heads*D], in place. The spans must outlive backward.
Variable rope(Tape& tape, const Variable& x, const kernels::RopeArgs& args);

/// Causal attention (kernels/attention.h). prefix_k/prefix_v may be undefined. The offsets must
/// outlive backward.
struct AttentionInputs {
  Variable q, k, v;
  Variable prefix_k, prefix_v;
  std::span<const int32_t> sample_offsets;
};
Variable attention(Tape& tape, const AttentionInputs& inputs, const kernels::AttentionShape& shape);

/// silu(gate) * up.
Variable swiglu(Tape& tape, const Variable& gate, const Variable& up);

/// x [T,in] W^T with a trainable weight [out,in]; in x's dtype (bf16: the weight's bf16 copy).
Variable linear(Tape& tape, const Variable& x, ParameterId weight);
/// y + bias, trainable [N], in place.
Variable add_bias(Tape& tape, const Variable& y, ParameterId bias);

/// y + scale * (x A^T) B^T in x's dtype, or in f32 where more is to follow. In place on a y of that
/// dtype; an f32 y of bf16 activations is rounded after the addition. lora_A [r,in], lora_B [out,r]
/// trainable; with lora_E [r,1] y + scale * ((x A^T) * E^T) B^T.
/// Source  Hu et al. 2021, LoRA, arXiv:2106.09685; lora_E: Zhang et al. 2023, arXiv:2303.10512
struct LowRank {
  ParameterId lora_A = kNoParameter;
  ParameterId lora_B = kNoParameter;
  float scale = 1.0f;
  std::optional<DType> result = std::nullopt;  // without: x's dtype
  ParameterId lora_E = kNoParameter;
};
Variable low_rank_update(Tape& tape, const Variable& y, const Variable& x, const LowRank& update);

/// A product y that makes itself together with a second term, so that nothing of it is written and
/// read in between.
struct UnmadeProduct {
  Variable y;  // Tape::unmade: where its gradient goes
  Shape shape;
  /// sum = y + term, rounded once.
  std::function<void(const kernels::LowRankTerm& term, const TensorView& sum)> make;
};
/// As above, of a y that is not there yet.
Variable low_rank_update(Tape& tape, const UnmadeProduct& product, const Variable& x,
                         const LowRank& update);

/// y as it is, where y = x W^T and W holds Q(W0 + scale * B A) already: the way back to A and B
/// takes Q for the identity (straight-through), and that to x is the product's own. `result` is not
/// used.
Variable low_rank_straight_through(Tape& tape, const Variable& y, const Variable& x,
                                   const LowRank& update);

}  // namespace shardtune::autograd
