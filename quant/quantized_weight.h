// A frozen weight whose products decode it panel by panel (kernels::gemm_by_panels): a dense copy
// is never whole in memory, and decoding costs a few per cent of a training-size product.
#pragma once

#include "quant/frozen_weight.h"

namespace shardtune::quant {

class QuantizedWeight : public FrozenWeight {
 public:
  void matmul_rows(const TensorView& x, int64_t begin, int64_t end, const TensorView& y,
                   Accumulate accumulate) const final;
  void matmul_with_low_rank(const TensorView& x, const kernels::LowRankTerm& term,
                            const TensorView& y) const final;
  void matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                              const TensorView& dx, Accumulate accumulate) const final;
  void rows(std::span<const int32_t> ids, const TensorView& out) const final;
  void dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const final;
  kernels::BlockSource blocks() const final { return decoder(0); }

 protected:
  explicit QuantizedWeight(Spec spec) : FrozenWeight(std::move(spec)) {}

  /// Decodes blocks of the leased weight, rows counted from first_row: out f32 or bf16, each value
  /// with the bits that it has in a decoded whole row.
  virtual kernels::BlockSource decoder(int64_t first_row) const = 0;
};

}  // namespace shardtune::quant
