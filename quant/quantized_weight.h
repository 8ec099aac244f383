// A frozen weight whose products run over a dense copy made for the call: decoding costs a few per
// cent of a training-size product, and the copy goes back to the buffer pool before the call ends.
#pragma once

#include "quant/frozen_weight.h"

namespace shardtune::quant {

class QuantizedWeight : public FrozenWeight {
 public:
  void matmul_rows(const TensorView& x, int64_t begin, int64_t end, const TensorView& y,
                   Accumulate accumulate) const final;
  void matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                              const TensorView& dx, Accumulate accumulate) const final;

 protected:
  explicit QuantizedWeight(Spec spec) : FrozenWeight(std::move(spec)) {}
};

}  // namespace shardtune::quant
