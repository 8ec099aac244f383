// The factories and sizes of the formats, private to quant/: what registry.cpp lists.
#pragma once

#include "quant/frozen_weight.h"

namespace shardtune::quant {

std::unique_ptr<FrozenWeight> make_dense_weight(const FrozenWeightRequest& request,
                                                const QuantizationOptions& options);
std::unique_ptr<FrozenWeight> make_nf4_weight(const FrozenWeightRequest& request,
                                              const QuantizationOptions& options);
std::unique_ptr<FrozenWeight> make_int8_weight(const FrozenWeightRequest& request,
                                               const QuantizationOptions& options);

/// Bytes of all components of a weight of num_rows x num_columns.
int64_t dense_weight_bytes(int64_t num_rows, int64_t num_columns, DType compute);
int64_t nf4_weight_bytes(const QuantizationOptions& options, int64_t num_rows, int64_t num_columns);
int64_t int8_weight_bytes(int64_t num_rows, int64_t num_columns);

}  // namespace shardtune::quant
