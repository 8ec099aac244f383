#include "quant/quantized_weight.h"

#include "core/dry_run.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

void QuantizedWeight::matmul_rows(const TensorView& x, int64_t begin, int64_t end,
                                  const TensorView& y, Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "x", x, -1, in_features());
  check_matrix(*this, "y", y, x.dim(0), end - begin);
  if (x.dim(0) == 0)
    return;
  const PurposeScope purpose(Purpose::kDequantised);
  const Tensor dense({end - begin, in_features()}, x.dtype());
  dequantize_rows(begin, end, dense);
  kernels::gemm(x, dense, kernels::Transpose::kYes, y, accumulate);
}

void QuantizedWeight::matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                                             const TensorView& dx, Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "dy", dy, -1, end - begin);
  check_matrix(*this, "dx", dx, dy.dim(0), in_features());
  if (dy.dim(0) == 0)
    return;
  const PurposeScope purpose(Purpose::kDequantised);
  const Tensor dense({end - begin, in_features()}, dy.dtype());
  dequantize_rows(begin, end, dense);
  kernels::gemm(dy, dense, kernels::Transpose::kNo, dx, accumulate);
}

}  // namespace shardtune::quant
