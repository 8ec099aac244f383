#include "quant/int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/parallel_for.h"
#include "quant/decode_machine.h"
#include "quant/int8_kernels.h"
#include "quant/rounding.h"

namespace shardtune::quant {

namespace {
constexpr int64_t kValuesPerTask = 1 << 14;
constexpr float kLevels = 127.0f;

// As in NF4: integers order finite magnitudes as floats do, with infinity and NaN above them.
float row_absmax(const float* x, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  return std::bit_cast<float>(largest);
}

// Rounds to nearest even for |v| < 2^22: the sum has no bits left for the fraction.
int32_t round_to_int(float v) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return std::bit_cast<int32_t>(v + kMagic) - std::bit_cast<int32_t>(kMagic);
}

void quantize_row(const float* x, int64_t count, float absmax, int8_t* codes) {
  const float factor = kLevels / absmax;
  if (absmax == 0.0f) {
    std::fill_n(codes, count, int8_t{0});
  } else if (factor > std::numeric_limits<float>::max()) {
    // A subnormal absmax: its reciprocal overflows, the quotient of two values does not.
    for (int64_t i = 0; i < count; ++i)
      codes[i] = static_cast<int8_t>(round_to_int(x[i] / absmax * kLevels));
  } else {
    for (int64_t i = 0; i < count; ++i)
      codes[i] = static_cast<int8_t>(round_to_int(x[i] * factor));
  }
}
}  // namespace

std::optional<int64_t> int8_quantize_rows(std::span<const float> x, int64_t in_features,
                                          std::span<int8_t> codes, std::span<float> absmax) {
  const int64_t rows = std::ssize(absmax);
  if (in_features <= 0 || std::ssize(x) != checked_mul(rows, in_features) ||
      codes.size() != x.size())
    throw ArgumentError("int8_quantize_rows: " + std::to_string(rows) + " absmax of rows of " +
                        std::to_string(in_features) + " need as many values and codes, found " +
                        std::to_string(x.size()) + " and " + std::to_string(codes.size()));
  const int64_t grain = std::max<int64_t>(kValuesPerTask / in_features, 1);
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x.data() + r * in_features;
      absmax[r] = row_absmax(row, in_features);
      if (absmax[r] <= std::numeric_limits<float>::max())
        quantize_row(row, in_features, absmax[r], codes.data() + r * in_features);
    }
  });
  for (int64_t r = 0; r < rows; ++r) {
    if (absmax[r] <= std::numeric_limits<float>::max())
      continue;
    return first_non_finite(x.subspan(r * in_features), r * in_features);
  }
  return std::nullopt;
}

void int8_dequantize_row(std::span<const int8_t> codes, float absmax, const TensorView& out) {
  const float scale = absmax / kLevels;
  if (out.dtype() == DType::kFloat32)
    return int8_decode(codes.data(), std::ssize(codes), scale, out.data<float>());
  const DecodeFunctions* const machine = decode_functions();
  if (machine != nullptr && (scale == 0.0f || scale > kLeastMachineFactor))
    machine->int8(codes.data(), std::ssize(codes), scale,
                  reinterpret_cast<uint16_t*>(out.data<BFloat16>()));
  else
    int8_decode(codes.data(), std::ssize(codes), scale, out.data<BFloat16>());
}

}  // namespace shardtune::quant
