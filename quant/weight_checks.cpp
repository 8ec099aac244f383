#include "quant/weight_checks.h"

#include <algorithm>
#include <string>

namespace shardtune::quant {

void check_request(const FrozenWeightRequest& request) {
  const std::string where = "weight " + request.name + ": ";
  if (request.store == nullptr)
    throw ArgumentError(where + "expected a parameter store, found none");
  if (request.out_features <= 0 || request.in_features <= 0)
    throw ArgumentError(where + "expected positive [out, in], found [" +
                        std::to_string(request.out_features) + ", " +
                        std::to_string(request.in_features) + "]");
  checked_mul(checked_mul(request.out_features, request.in_features), size_of(DType::kFloat32));
  if (request.compute != DType::kFloat32 && request.compute != DType::kBFloat16)
    throw ArgumentError(where + "compute dtype: expected float32 or bfloat16, found " +
                        std::string(name_of(request.compute)));
}

void check_row_range(const FrozenWeight& weight, int64_t begin, int64_t end) {
  if (begin < 0 || begin >= end || end > weight.out_features())
    throw ArgumentError("weight " + weight.name() + ": expected a range of its " +
                        std::to_string(weight.out_features()) + " rows, found [" +
                        std::to_string(begin) + ", " + std::to_string(end) + ")");
}

void check_matrix(const FrozenWeight& weight, const char* argument, const TensorView& view,
                  int64_t rows, int64_t columns) {
  const bool fits = view.shape().ndim() == 2 && view.dim(1) == columns &&
                    (rows == -1 || view.dim(0) == rows) &&
                    (view.dtype() == DType::kFloat32 || view.dtype() == DType::kBFloat16);
  if (fits)
    return;
  throw ArgumentError("weight " + weight.name() + ": " + argument + ": expected [" +
                      (rows == -1 ? std::string("T") : std::to_string(rows)) + ", " +
                      std::to_string(columns) + "] float32 or bfloat16, found " +
                      view.shape().to_string() + " " + std::string(name_of(view.dtype())));
}

void check_row_ids(const FrozenWeight& weight, std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (id < 0 || id >= weight.out_features())
      throw ArgumentError("weight " + weight.name() + ": expected row ids below " +
                          std::to_string(weight.out_features()) + ", found " + std::to_string(id));
  }
}

void throw_non_finite(const FrozenWeight& weight, int64_t index, float value) {
  const int64_t row = index / weight.in_features();
  const int64_t column = index % weight.in_features();
  throw NonFiniteError("weight " + weight.name() + ": expected finite values, found " +
                       std::to_string(value) + " at [" + std::to_string(row) + ", " +
                       std::to_string(column) + "] (index " + std::to_string(index) +
                       "). The model file is damaged or overflowed when it was converted; "
                       "use another copy.");
}

int64_t rows_per_slab(int64_t in_features) {
  constexpr int64_t kSlabValues = 1 << 20;
  return std::max<int64_t>(kSlabValues / in_features, 1);
}

int64_t rows_per_group(int64_t in_features, int64_t multiple) {
  constexpr int64_t kGroupValues = 1 << 15;
  return std::max<int64_t>(kGroupValues / (in_features * multiple), 1) * multiple;
}

int64_t rows_per_task(int64_t in_features) {
  constexpr int64_t kTaskValues = 1 << 14;
  return std::max<int64_t>(kTaskValues / in_features, 1);
}

}  // namespace shardtune::quant
