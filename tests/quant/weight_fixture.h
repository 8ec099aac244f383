// A store with one loaded weight, and reproducible values, for tests of weights.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/rng.h"
#include "quant/frozen_weight.h"
#include "tests/quant/fake_store.h"

namespace shardtune::quant {

inline std::vector<float> normal_values(int64_t n, float scale, uint64_t key) {
  const CounterRng rng(key);
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    values[static_cast<size_t>(i)] = scale * rng.normal(static_cast<uint64_t>(i));
  return values;
}

/// Rows of a matrix held in memory.
inline RowSource row_source(const std::vector<float>& values, int64_t columns) {
  return [&values, columns](int64_t begin, int64_t end, float* out) {
    std::copy(values.begin() + begin * columns, values.begin() + end * columns, out);
  };
}

/// values as a tensor of dtype f32 or bf16.
inline Tensor tensor_of(const std::vector<float>& values, Shape shape, DType dtype) {
  if (dtype == DType::kFloat32)
    return Tensor::from(values, shape);
  Tensor result(shape, dtype);
  for (size_t i = 0; i < values.size(); ++i)
    result.data<BFloat16>()[i] = BFloat16(values[i]);
  return result;
}

struct LoadedWeight {
  LoadedWeight(const QuantizationOptions& options, int64_t out, int64_t in, DType compute)
      : values(normal_values(out * in, 0.05f, static_cast<uint64_t>(out * 1000 + in))),
        unit(store.add_unit("layer")),
        weight(make_frozen_weight({&store, unit, "w", out, in, compute}, options)) {
    weight->load(row_source(values, in));
    lease = store.acquire(unit, Pass::kForward);
  }

  /// The whole weight decoded.
  Tensor dense(DType dtype) const {
    Tensor result({weight->out_features(), weight->in_features()}, dtype);
    weight->dequantize_rows(0, weight->out_features(), result);
    return result;
  }

  FakeStore store;
  std::vector<float> values;
  UnitId unit;
  std::unique_ptr<FrozenWeight> weight;
  UnitLease lease;
};

}  // namespace shardtune::quant
