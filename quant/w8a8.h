// A frozen linear computed in int8 (W8A8) whatever format its weight is stored in: activations get
// a scale per token, the weight one per row, and outliers of input channels are moved into the
// weight first. Nothing is stored beside the weight but one small exponent per channel and one
// scale per row; codes are made from the decoded weight while it is multiplied.
// Source  Xiao et al. 2023, SmoothQuant, arXiv:2211.10438, section 4, with alpha = 0.5. Different
//         here: a channel's factor is rounded to a power of two, so that moving it rounds nothing;
//         gradients to the input are computed in int8 too, with scales per token.
#pragma once

#include <cstdint>
#include <span>

#include "core/tensor.h"
#include "kernels/gemm_int8.h"
#include "quant/frozen_weight.h"

namespace shardtune::quant {

class W8A8 {
 public:
  /// Exponents that a channel may have.
  static constexpr int kMinExponent = -12;
  static constexpr int kMaxExponent = 13;

  /// UnsupportedError: a weight with more features than an int32 sum has room for.
  explicit W8A8(const FrozenWeight& weight);

  /// The exponents that balance inputs of these magnitudes with the weight, and with them the
  /// scales of its rows. The weight is leased.
  void calibrate(std::span<const float> input_absmax);
  /// The same with exponents chosen before.
  void set_exponents(std::span<const int8_t> exponents);
  std::span<const int8_t> exponents() const;
  bool is_ready() const { return is_ready_; }

  /// y [T,out] (+)= x [T,in] W^T, and dx [T,in] (+)= dy [T,out] W. The weight is leased.
  /// Dtypes  all f32 | bf16
  /// Exact   each row has the same bits at any number of threads and with any other rows
  void matmul(const TensorView& x, const TensorView& y, Accumulate accumulate) const;
  void matmul_transposed(const TensorView& dy, const TensorView& dx, Accumulate accumulate) const;

 private:
  kernels::Int8Weight codes() const;
  void scale_rows();

  const FrozenWeight& weight_;
  bool is_ready_ = false;
  Tensor exponents_;       // int8 [in]: channel i of x is divided by 2^e, of W multiplied
  Tensor column_factors_;  // f32 [in], 2^e
  Tensor input_factors_;   // f32 [in], 2^-e
  Tensor row_factors_;     // f32 [out], 127 / absmax of the row
  Tensor row_scales_;      // f32 [out], absmax / 127
};

/// e of the formula: the power of two nearest (in the logarithm) to sqrt(input / weight); 0 where
/// one of them is 0 or not finite.
int balancing_exponent(float input_absmax, float weight_absmax);

}  // namespace shardtune::quant
