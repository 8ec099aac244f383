#include "quant/decode_machine.h"

#include "kernels/gemm.h"

namespace shardtune::quant {

const DecodeFunctions* decode_functions() {
  static const DecodeFunctions* const functions =
      kernels::has_fast_bfloat16() ? machine_decoders() : nullptr;
  return functions;
}

}  // namespace shardtune::quant
