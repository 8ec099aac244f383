#include "quant/quantized_weight.h"

#include "core/parallel_for.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

void QuantizedWeight::matmul_rows(const TensorView& x, int64_t begin, int64_t end,
                                  const TensorView& y, Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "x", x, -1, in_features());
  check_matrix(*this, "y", y, x.dim(0), end - begin);
  kernels::gemm_by_panels(x, decoder(begin), kernels::Transpose::kYes, y, accumulate);
}

void QuantizedWeight::matmul_with_low_rank(const TensorView& x, const kernels::LowRankTerm& term,
                                           const TensorView& y) const {
  check_matrix(*this, "x", x, -1, in_features());
  check_matrix(*this, "y", y, x.dim(0), out_features());
  kernels::gemm_by_panels_with_low_rank(x, decoder(0), term, y);
}

void QuantizedWeight::matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                                             const TensorView& dx, Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "dy", dy, -1, end - begin);
  check_matrix(*this, "dx", dx, dy.dim(0), in_features());
  kernels::gemm_by_panels(dy, decoder(begin), kernels::Transpose::kNo, dx, accumulate);
}

void QuantizedWeight::rows(std::span<const int32_t> ids, const TensorView& out) const {
  check_matrix(*this, "out", out, std::ssize(ids), in_features());
  check_row_ids(*this, ids);
  const kernels::BlockSource decode = decoder(0);
  parallel_for(std::ssize(ids), rows_per_task(in_features()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      decode({ids[static_cast<size_t>(i)], 1, 0, in_features()}, out.rows(i, i + 1));
  });
}

void QuantizedWeight::dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "out", out, end - begin, in_features());
  const kernels::BlockSource decode = decoder(begin);
  parallel_for(end - begin, rows_per_task(in_features()), [&](int64_t first, int64_t last) {
    decode({first, last - first, 0, in_features()}, out.rows(first, last));
  });
}

}  // namespace shardtune::quant
