// The vector loops of the int8 codec, private to quant/.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace shardtune::quant {

/// out = codes * scale in fp32, rounded to the type of out. scale is finite.
void int8_decode(const int8_t* codes, int64_t count, float scale, float* out);
void int8_decode(const int8_t* codes, int64_t count, float scale, BFloat16* out);

}  // namespace shardtune::quant
