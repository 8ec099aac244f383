// The formats of the frozen base. A new one: its file, a line here, a line in CMakeLists.txt.
#include "quant/formats.h"

namespace shardtune::quant {

const Registry<FrozenWeightFactory>& frozen_formats() {
  static const Registry<FrozenWeightFactory> formats(
      "quantization.method",
      {{"none", &make_dense_weight}, {"nf4", &make_nf4_weight}, {"int8", &make_int8_weight}});
  return formats;
}

std::unique_ptr<FrozenWeight> make_frozen_weight(const FrozenWeightRequest& request,
                                                 const QuantizationOptions& options) {
  return frozen_formats().at(options.method)(request, options);
}

int64_t frozen_weight_bytes(const QuantizationOptions& options, int64_t out_features,
                            int64_t in_features, DType compute) {
  frozen_formats().at(options.method);  // refuses an unknown name
  if (options.method == "nf4")
    return nf4_weight_bytes(options, out_features, in_features);
  if (options.method == "int8")
    return int8_weight_bytes(out_features, in_features);
  return dense_weight_bytes(out_features, in_features, compute);
}

}  // namespace shardtune::quant
