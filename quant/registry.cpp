// The formats of the frozen base. A new one: its file, a line here, a line in CMakeLists.txt.
#include "quant/formats.h"

namespace shardtune::quant {

const Registry<FrozenWeightFactory>& frozen_formats() {
  static const Registry<FrozenWeightFactory> formats("quantization.method",
                                                     {{"none", &make_dense_weight},
                                                      {"keep", &make_stored_weight},
                                                      {"nf4", &make_nf4_weight},
                                                      {"fp4", &make_nf4_weight},
                                                      {"int8", &make_int8_weight}});
  return formats;
}

std::unique_ptr<FrozenWeight> make_frozen_weight(const FrozenWeightRequest& request,
                                                 const QuantizationOptions& options) {
  const FrozenWeightFactory make = frozen_formats().at(options.method);
  return request.is_trained ? make_dense_weight(request, {}) : make(request, options);
}

}  // namespace shardtune::quant
