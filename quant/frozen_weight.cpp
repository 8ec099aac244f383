#include "quant/frozen_weight.h"

#include <algorithm>

#include "core/parallel_for.h"
#include "quant/rounding.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

namespace {
constexpr int64_t kGrain = 1 << 14;

void round_into(const Tensor& sum, const TensorView& out) {
  const float* const source = sum.data<float>();
  BFloat16* const target = out.data<BFloat16>();
  parallel_for(sum.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      target[i] = BFloat16(source[i]);
  });
}
}  // namespace

void FrozenWeight::requantize(const RowSource&) {
  throw UnsupportedError("weight " + name_ + ": the format " + std::string(format()) +
                         " cannot be quantised anew. Use nf4, fp4 or int8.");
}

void FrozenWeight::matmul_with_delta(const TensorView& x, const DeltaSource& delta,
                                     const TensorView& y, Accumulate accumulate) const {
  check_matrix(*this, "x", x, -1, in_features_);
  check_matrix(*this, "y", y, x.dim(0), out_features_);
  if (x.dim(0) == 0)
    return;
  const Tensor merged({out_features_, in_features_}, x.dtype());
  const int64_t step = std::min(rows_per_slab(in_features_), out_features_);
  for (int64_t begin = 0; begin < out_features_; begin += step) {
    const int64_t end = std::min(begin + step, out_features_);
    const TensorView block = merged.view().rows(begin, end);
    if (x.dtype() == DType::kFloat32) {
      dequantize_rows(begin, end, block);
      delta(begin, end, block.data<float>());
    } else {
      const Tensor sum({end - begin, in_features_}, DType::kFloat32);
      dequantize_rows(begin, end, sum);
      delta(begin, end, sum.data<float>());
      round_into(sum, block);
    }
  }
  kernels::gemm(x, merged, kernels::Transpose::kYes, y, accumulate);
}

}  // namespace shardtune::quant
