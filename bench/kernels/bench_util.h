// Shared by the benches of kernels/: filled tensors and a counter of arithmetic.
#pragma once

#include <benchmark/benchmark.h>

#include <vector>

#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/elementwise.h"

namespace shardtune::kernels {

inline Tensor filled(Shape shape, DType dtype, uint64_t seed) {
  Tensor values(shape, DType::kFloat32);
  const CounterRng rng(seed);
  for (int64_t i = 0; i < values.numel(); ++i)
    values.data<float>()[i] = rng.uniform(static_cast<uint64_t>(i)) - 0.5f;
  Tensor result(shape, dtype);
  cast(values, result);
  return result;
}

inline void count_flops(benchmark::State& state, double flops_per_call) {
  state.counters["GFLOPS"] =
      benchmark::Counter(flops_per_call * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

inline DType dtype_of_range(int64_t value) {
  return value == 0 ? DType::kFloat32 : DType::kBFloat16;
}

}  // namespace shardtune::kernels
