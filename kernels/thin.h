// A product over a short inner dimension onto another, as adapters of low rank have it: bound by
// reading y and writing out, each of which is touched once here. Private to kernels/.
#pragma once

#include "kernels/gemm.h"

namespace shardtune::kernels {

/// Whether gemm_onto takes this form: bf16 in hardware, K <= 64.
bool is_thin(const TensorView& a);

/// gemm_onto on all threads, its arguments checked.
/// Exact   each value of out has the same bits for any number of threads and rows
void thin_onto(const TensorView& y, const TensorView& a, const TensorView& b, const TensorView& out,
               float scale);

}  // namespace shardtune::kernels
