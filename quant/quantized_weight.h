// A frozen weight whose products decode it panel by panel (kernels::gemm_by_panels): a dense copy
// is never whole in memory, and decoding costs a few per cent of a training-size product.
#pragma once

#include "quant/frozen_weight.h"

namespace shardtune::quant {

class QuantizedWeight : public FrozenWeight {
 public:
  void matmul_rows(const TensorView& x, int64_t begin, int64_t end, const TensorView& y,
                   Accumulate accumulate) const final;
  void matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                              const TensorView& dx, Accumulate accumulate) const final;
  void rows(std::span<const int32_t> ids, const TensorView& out) const final;
  void dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const final;

 protected:
  explicit QuantizedWeight(Spec spec) : FrozenWeight(std::move(spec)) {}

  /// Decodes values of the leased weight: out [end - begin] = W[row, begin:end], f32 or bf16, with
  /// the bits of a decoded whole row. On the calling thread; many at once.
  using RowDecoder =
      std::function<void(int64_t row, int64_t begin, int64_t end, const TensorView& out)>;
  virtual RowDecoder decoder() const = 0;

 private:
  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
  };
  void decode_block(Range rows, Range columns, const TensorView& out) const;
};

}  // namespace shardtune::quant
