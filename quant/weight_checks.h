// Checks and loading steps shared by the weight classes, private to quant/.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/parameter_store.h"
#include "quant/frozen_weight.h"

namespace shardtune::quant {

/// ArgumentError unless the request has a store, positive extents and computes in f32 or bf16.
void check_request(const FrozenWeightRequest& request);

/// ArgumentError unless 0 <= begin < end <= out_features.
void check_row_range(const FrozenWeight& weight, int64_t begin, int64_t end);

/// ArgumentError unless view is [rows, columns] of f32 or bf16; rows -1 fits any.
void check_matrix(const FrozenWeight& weight, const char* argument, const TensorView& view,
                  int64_t rows, int64_t columns);

/// ArgumentError for an id outside the weight's rows.
void check_row_ids(const FrozenWeight& weight, std::span<const int32_t> ids);

/// NonFiniteError naming the weight, row and column of the value at a flat index.
[[noreturn]] void throw_non_finite(const FrozenWeight& weight, int64_t index, float value);

/// Rows read at a time while loading, about 4 MiB of fp32.
int64_t rows_per_slab(int64_t in_features);

/// Rows that requantize() has in hand on each thread, a multiple of `multiple`: with their codes
/// they stay in a core's second cache.
int64_t rows_per_group(int64_t in_features, int64_t multiple);

/// Rows decoded by one thread at a time.
int64_t rows_per_task(int64_t in_features);

template <typename T>
void publish_values(ParameterStore& store, ParameterId id, const std::vector<T>& values) {
  store.publish(id, store.is_publisher(id) ? std::as_bytes(std::span<const T>(values))
                                           : std::span<const std::byte>());
}

}  // namespace shardtune::quant
