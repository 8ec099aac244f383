#include "quant/w8a8.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

namespace {
constexpr int64_t kRowsPerBlock = 16;
// Below this 127 / absmax overflows.
constexpr float kLeastAbsmax = 128.0f * std::numeric_limits<float>::min();

/// Largest magnitude of each column. One thread: a pass over the weight at start.
std::vector<float> column_absmax(const FrozenWeight& weight) {
  const int64_t columns = weight.in_features();
  std::vector<float> absmax(static_cast<size_t>(columns), 0.0f);
  const Tensor block(Shape{kRowsPerBlock, columns}, DType::kFloat32);
  if (DryRun::current() != nullptr)
    return absmax;
  const kernels::BlockSource blocks = weight.blocks();
  for (int64_t row = 0; row < weight.out_features(); row += kRowsPerBlock) {
    const int64_t count = std::min(kRowsPerBlock, weight.out_features() - row);
    blocks({row, count, 0, columns}, block.view().rows(0, count));
    const float* values = block.data<float>();
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < columns; ++c)
        absmax[c] = std::max(absmax[c], std::abs(*values++));
  }
  return absmax;
}
}  // namespace

int balancing_exponent(float input_absmax, float weight_absmax) {
  if (!(input_absmax > 0.0f) || !(weight_absmax > 0.0f))
    return 0;
  const float ratio = input_absmax / weight_absmax;
  if (!(ratio > 0.0f) || ratio > std::numeric_limits<float>::max())
    return 0;
  // 2^(p-1) <= ratio < 2^p; half of its logarithm, rounded.
  int p = 0;
  std::frexp(ratio, &p);
  return std::clamp(p >= 0 ? p / 2 : -((1 - p) / 2), W8A8::kMinExponent, W8A8::kMaxExponent);
}

W8A8::W8A8(const FrozenWeight& weight) : weight_(weight) {
  const int64_t longest = std::max(weight.in_features(), weight.out_features());
  if (longest > kernels::kInt8MaxDepth) {
    throw UnsupportedError(weight.name() + ": compute_dtype int8: expected at most " +
                           std::to_string(kernels::kInt8MaxDepth) + " features, found " +
                           std::to_string(longest) +
                           ": sums would not fit 32 bits. Use 'compute_dtype: auto'.");
  }
  const PurposeScope purpose(Purpose::kInt8Scales);
  exponents_ = Tensor(Shape{weight.in_features()}, DType::kInt8);
  column_factors_ = Tensor(Shape{weight.in_features()}, DType::kFloat32);
  input_factors_ = Tensor(Shape{weight.in_features()}, DType::kFloat32);
  row_factors_ = Tensor(Shape{weight.out_features()}, DType::kFloat32);
  row_scales_ = Tensor(Shape{weight.out_features()}, DType::kFloat32);
}

std::span<const int8_t> W8A8::exponents() const { return exponents_.view().span<const int8_t>(); }

void W8A8::calibrate(std::span<const float> input_absmax) {
  SHARDTUNE_ASSERT(std::ssize(input_absmax) == weight_.in_features());
  const std::vector<float> absmax = column_absmax(weight_);
  std::vector<int8_t> exponents(absmax.size());
  for (size_t i = 0; i < absmax.size(); ++i)
    exponents[i] = static_cast<int8_t>(balancing_exponent(input_absmax[i], absmax[i]));
  set_exponents(exponents);
}

void W8A8::set_exponents(std::span<const int8_t> exponents) {
  SHARDTUNE_ASSERT(std::ssize(exponents) == weight_.in_features());
  const bool computes = DryRun::current() == nullptr;
  for (size_t i = 0; computes && i < exponents.size(); ++i) {
    exponents_.data<int8_t>()[i] = exponents[i];
    column_factors_.data<float>()[i] = std::ldexp(1.0f, exponents[i]);
    input_factors_.data<float>()[i] = std::ldexp(1.0f, -exponents[i]);
  }
  scale_rows();
  is_ready_ = true;
}

kernels::Int8Weight W8A8::codes() const {
  kernels::Int8Weight codes;
  codes.rows = weight_.out_features();
  codes.columns = weight_.in_features();
  codes.column_factors = column_factors_.data<float>();
  codes.row_factors = row_factors_.data<float>();
  codes.blocks = weight_.blocks();
  return codes;
}

void W8A8::scale_rows() {
  kernels::row_absmax_int8(codes(), row_scales_.data<float>());
  if (DryRun::current() != nullptr)
    return;
  float* const scales = row_scales_.data<float>();
  float* const factors = row_factors_.data<float>();
  for (int64_t row = 0; row < weight_.out_features(); ++row) {
    const float absmax = scales[row];
    const bool is_zero = absmax < kLeastAbsmax;
    factors[row] = is_zero ? 0.0f : 127.0f / absmax;
    scales[row] = is_zero ? 0.0f : absmax / 127.0f;
  }
}

void W8A8::matmul(const TensorView& x, const TensorView& y, Accumulate accumulate) const {
  SHARDTUNE_ASSERT(is_ready_);
  check_matrix(weight_, "x", x, -1, weight_.in_features());
  check_matrix(weight_, "y", y, x.dim(0), weight_.out_features());
  const kernels::Int8Rows rows = kernels::quantize_rows_int8(x, input_factors_);
  kernels::gemm_int8(rows, codes(), kernels::Transpose::kYes, row_scales_, y, accumulate);
}

void W8A8::matmul_transposed(const TensorView& dy, const TensorView& dx,
                             Accumulate accumulate) const {
  SHARDTUNE_ASSERT(is_ready_);
  check_matrix(weight_, "dy", dy, -1, weight_.out_features());
  check_matrix(weight_, "dx", dx, dy.dim(0), weight_.in_features());
  // dy W = (dy * scale of the row) codes / 2^e: scales inside the sum go to the gradient.
  const kernels::Int8Rows rows = kernels::quantize_rows_int8(dy, row_scales_);
  kernels::gemm_int8(rows, codes(), kernels::Transpose::kNo, input_factors_, dx, accumulate);
}

}  // namespace shardtune::quant
