// Tolerances of numerical tests, derived from the dtype and the length of the sums. A test names
// the derivation it uses; loosening one needs the reason beside it.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace shardtune::tolerance {

/// Unit roundoff: half the distance from 1 to the next value.
inline double unit_roundoff(DType dtype) {
  return dtype == DType::kBFloat16 ? 0x1.0p-9 : 0x1.0p-24;
}

/// Bound on |sum computed - sum exact| / sum of |terms| for a sum of n products in fp32, in any
/// order: (n + 1) u, with a random-walk expectation of sqrt(n) u. We take 4 sqrt(n) u + 2 u: above
/// four standard deviations of independent roundings, and below the worst case from n = 16 up.
inline double sum_of_products(int64_t n) {
  const double u = unit_roundoff(DType::kFloat32);
  return (4.0 * std::sqrt(static_cast<double>(n)) + 2.0) * u;
}

/// Two fp32 implementations of a network of `depth` chained sums of up to n terms each, relative to
/// the largest magnitude of the result: errors of the links add, each is amplified by at most
/// `gain` on its way to the end (norms keep it near 1; 4 leaves room for the residual stream).
inline double network(int64_t n, int64_t depth, double gain = 4.0) {
  return gain * static_cast<double>(depth) * sum_of_products(n);
}

/// Central difference of a function computed in fp32 with values of size `f` at step h: rounding
/// f * u * c / h (c roundings in the sum) plus truncation h^2 / 6 times the third derivative.
inline double central_difference(double f, double h, double third_derivative, double c = 8.0) {
  return f * unit_roundoff(DType::kFloat32) * c / h + h * h / 6.0 * third_derivative;
}

}  // namespace shardtune::tolerance
