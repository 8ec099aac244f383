// Elementwise operations and small reductions shared by the tape, models and adapters. All compute
// in fp32 and round once to the output's dtype; f32 and bf16 may be mixed unless stated.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/tensor.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

/// y (+)= scale * x, any of f32 | bf16 on either side (a cast when scale is 1).
void copy_scaled(const TensorView& x, const TensorView& y, Accumulate accumulate,
                 float scale = 1.0f);
inline void cast(const TensorView& x, const TensorView& y) { copy_scaled(x, y, Accumulate::kNo); }

/// y [T,N] += bias [N] f32 on every row.
void add_bias(const TensorView& bias, const TensorView& y);
/// out [N] f32 (+)= sum over rows of dy [T,N], in chunks of kTokenChunk rows added in order.
void sum_rows(const TensorView& dy, const TensorView& out, Accumulate accumulate);

/// out = silu(gate) * up, silu(x) = x / (1 + exp(-x)).
void swiglu(const TensorView& gate, const TensorView& up, const TensorView& out);
/// dgate and dup are written.
struct SwigluBackward {
  TensorView dout, gate, up;
  TensorView dgate, dup;
};
void swiglu_backward(const SwigluBackward& args);

enum class Activation { kRelu, kGelu, kGeluTanh, kSilu, kTanh, kSigmoid };
/// y = f(x); backward: dx (+)= dy * f'(x).
void activate(Activation activation, const TensorView& x, const TensorView& y);
void activate_backward(Activation activation, const TensorView& x, const TensorView& dy,
                       const TensorView& dx, Accumulate accumulate);

/// Which element a random number belongs to: token t of the batch is keyed by its sample and index
/// there, so that packing, ranks and recompute never change a mask (DESIGN section 8.4).
struct DropoutKey {
  uint64_t seed = 0;  // seed, step, layer and site mixed by the caller
  std::span<const uint64_t> sample_of_token;
  std::span<const int32_t> index_in_sample;
};
/// y = x * keep / (1 - p), keep drawn per element of x [T,N]; the same call on dy gives dx.
void dropout(const TensorView& x, float p, const DropoutKey& key, const TensorView& y,
             Accumulate accumulate);

/// Sum of squares in fp64 of each chunk of 4,096 elements (the last may be short), DESIGN 8.3.
void sum_squares_per_chunk(std::span<const float> x, std::span<double> chunks);
inline constexpr int64_t kShardGranule = 4096;

/// Index of the first NaN or infinity, nothing when all are finite.
std::optional<int64_t> find_non_finite(const TensorView& x);

}  // namespace shardtune::kernels
