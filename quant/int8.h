// int8 rows with one absmax each, the weight format of LLM.int8(), as a codec over plain memory.
// Where we differ: bitsandbytes casts the weight to fp16 before it quantises; we quantise the fp32
// values as they are. For values that fp16 holds exactly, codes and absmax are the same.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "core/tensor.h"

namespace shardtune::quant {

/// Quantises each row of x: absmax [rows], codes = x * (127 / absmax) rounded to nearest even. A
/// row of zeros has absmax 0 and codes 0. Returns the index of the first NaN or infinity of x; the
/// outputs are then not to be used Shapes  x [rows * in]; codes [rows * in] i8; absmax [rows] f32
/// Exact   any number of threads
/// Errors  ArgumentError: sizes that do not fit
/// Source  Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339; absmax is what it calls SCB
[[nodiscard]] std::optional<int64_t> int8_quantize_rows(std::span<const float> x,
                                                        int64_t in_features,
                                                        std::span<int8_t> codes,
                                                        std::span<float> absmax);

/// out = code * (absmax / 127) in fp32, rounded to out's dtype, for one row. Calling thread only.
/// Dtypes  out f32 | bf16
void int8_dequantize_row(std::span<const int8_t> codes, float absmax, const TensorView& out);

}  // namespace shardtune::quant
