// The plain forms of the operations, one loop per sum, kept as oracles for the fast ones. Sums run
// in fp64 in index order; results are rounded once. (Attention's stand in attention.h.)
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

namespace shardtune::kernels {

void gemm_reference(const TensorView& a, const TensorView& b, Transpose transpose_b,
                    const TensorView& c, Accumulate accumulate, float scale = 1.0f);
void gemm_over_tokens_reference(const TensorView& dy, const TensorView& x, const TensorView& out,
                                Accumulate accumulate, float scale = 1.0f);

void rms_norm_reference(const TensorView& x, const TensorView& weight, float eps,
                        const TensorView& y, const TensorView& rstd);
void rms_norm_backward_reference(const RmsNormBackward& args, Accumulate accumulate_dx);

void layer_norm_reference(const LayerNormForward& args);
void layer_norm_backward_reference(const LayerNormBackward& args, Accumulate accumulate_dx);

void rope_reference(const TensorView& x, const RopeArgs& args, RopeDirection direction);

void swiglu_reference(const TensorView& gate, const TensorView& up, const TensorView& out);
void swiglu_backward_reference(const SwigluBackward& args);

/// f(x) and f'(x) in fp64.
double activation_value(Activation activation, double x);
double activation_derivative(Activation activation, double x);

/// losses [R] and dlogits [R,V] = scale * (softmax - one_hot) over whole rows of logits [R,V] f32;
/// either output may be empty.
void cross_entropy_reference(const TensorView& logits, std::span<const int32_t> labels, float scale,
                             std::span<float> losses, const TensorView& dlogits);

}  // namespace shardtune::kernels
