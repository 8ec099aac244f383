// The factories and sizes of the formats, private to quant/: what registry.cpp lists.
#pragma once

#include "quant/frozen_weight.h"

namespace shardtune::quant {

std::unique_ptr<FrozenWeight> make_dense_weight(const FrozenWeightRequest& request,
                                                const QuantizationOptions& options);
std::unique_ptr<FrozenWeight> make_nf4_weight(const FrozenWeightRequest& request,
                                              const QuantizationOptions& options);
std::unique_ptr<FrozenWeight> make_stored_weight(const FrozenWeightRequest& request,
                                                 const QuantizationOptions& options);
std::unique_ptr<FrozenWeight> make_int8_weight(const FrozenWeightRequest& request,
                                               const QuantizationOptions& options);

}  // namespace shardtune::quant
