#include "quant/quantized_weight.h"

#include "core/parallel_for.h"
#include "quant/weight_checks.h"

namespace shardtune::quant {

void QuantizedWeight::matmul_rows(const TensorView& x, int64_t begin, int64_t end,
                                  const TensorView& y, Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "x", x, -1, in_features());
  check_matrix(*this, "y", y, x.dim(0), end - begin);
  const auto rows_of = [&](int64_t first, int64_t last, const TensorView& panel) {
    decode_block({begin + first, begin + last}, {0, in_features()}, panel);
  };
  kernels::gemm_by_panels(x, rows_of, kernels::Transpose::kYes, y, accumulate);
}

void QuantizedWeight::matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                                             const TensorView& dx, Accumulate accumulate) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "dy", dy, -1, end - begin);
  check_matrix(*this, "dx", dx, dy.dim(0), in_features());
  const auto columns_of = [&](int64_t first, int64_t last, const TensorView& panel) {
    decode_block({begin, end}, {first, last}, panel);
  };
  kernels::gemm_by_panels(dy, columns_of, kernels::Transpose::kNo, dx, accumulate);
}

void QuantizedWeight::rows(std::span<const int32_t> ids, const TensorView& out) const {
  check_matrix(*this, "out", out, std::ssize(ids), in_features());
  check_row_ids(*this, ids);
  const RowDecoder decode = decoder();
  parallel_for(std::ssize(ids), rows_per_task(in_features()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      decode(ids[static_cast<size_t>(i)], 0, in_features(), out.rows(i, i + 1));
  });
}

void QuantizedWeight::dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const {
  check_row_range(*this, begin, end);
  check_matrix(*this, "out", out, end - begin, in_features());
  decode_block({begin, end}, {0, in_features()}, out);
}

void QuantizedWeight::decode_block(Range rows, Range columns, const TensorView& out) const {
  const RowDecoder decode = decoder();
  const int64_t grain = rows_per_task(columns.end - columns.begin);
  parallel_for(rows.end - rows.begin, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      decode(rows.begin + i, columns.begin, columns.end, out.rows(i, i + 1));
  });
}

}  // namespace shardtune::quant
