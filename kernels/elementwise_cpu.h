// The vector forms behind elementwise.cpp: one call is one thread's range.
#pragma once

#include <cstdint>

#include "kernels/elementwise.h"

namespace shardtune::kernels::cpu {

/// Elements [begin, end) of flat arrays.
struct Range {
  int64_t begin, end;
};

void copy_scaled(const TensorView& x, const TensorView& y, Accumulate accumulate, float scale,
                 Range elements);
void add_bias(const TensorView& bias, const TensorView& y, Range rows);
/// Columns [begin, end) of dy, summed over all rows.
void sum_rows(const TensorView& dy, const TensorView& out, Accumulate accumulate, Range columns);
void swiglu(const TensorView& gate, const TensorView& up, const TensorView& out, Range elements);
void swiglu_backward(const SwigluBackward& args, Range elements);
/// Every activation but kGelu, whose erf has no vector form.
void activate(Activation activation, const TensorView& x, const TensorView& y, Range elements);
void activate_backward(Activation activation, const TensorView& x, const TensorView& dy,
                       const TensorView& dx, Accumulate accumulate, Range elements);
double sum_squares(const float* x, int64_t n);
/// Whether all elements of the range are finite.
bool all_finite(const TensorView& x, Range elements);

}  // namespace shardtune::kernels::cpu
