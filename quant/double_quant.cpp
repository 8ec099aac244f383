#include "quant/double_quant.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "core/parallel_for.h"

namespace shardtune::quant {

namespace {
constexpr int64_t kBlocksPerTask = 16;
constexpr uint8_t kZeroCode = 127;

// Cells of [0.1, 1] have fp32 edges as torch.linspace makes them: an fp32 step, counted from the
// lower end in the first half and from the upper end in the second, multiplied and added with one
// rounding (fp64 stands in for the fused operation). A value is the middle of two edges times a
// power of ten, in fp32.
std::array<float, 256> make_dynamic_map(DynamicMapKind kind) {
  std::array<float, 256> map{};
  size_t count = 0;
  const int bits = kind == DynamicMapKind::kSigned ? 0 : 1;
  for (int i = 0; i <= 6; ++i) {
    const int cells = 1 << (i + bits);
    const double step = (1.0f - 0.1f) / static_cast<float>(cells);
    const auto edge = [&](int j) {
      const bool lower_half = j < (cells + 1) / 2;
      return static_cast<float>(lower_half ? 0.1f + step * j : 1.0 - step * (cells - j));
    };
    const float power = static_cast<float>(std::pow(10.0, i - 6));
    for (int j = 0; j < cells; ++j) {
      const float middle = (edge(j) + edge(j + 1)) / 2.0f;
      map[count++] = power * middle;
      if (kind == DynamicMapKind::kSigned)
        map[count++] = -(power * middle);
    }
  }
  map[count++] = 0.0f;
  map[count++] = 1.0f;
  SHARDTUNE_ASSERT(count == map.size());
  std::sort(map.begin(), map.end());
  return map;
}

// Middles of neighbours as fp64: exact, since both have 24 bits and are near in size.
std::array<double, 255> make_midpoints() {
  const std::array<float, 256>& map = dynamic_map(DynamicMapKind::kSigned);
  std::array<double, 255> midpoints{};
  for (size_t i = 0; i < midpoints.size(); ++i)
    midpoints[i] = (static_cast<double>(map[i]) + static_cast<double>(map[i + 1])) / 2.0;
  return midpoints;
}

// Number of midpoints m with m * nested_absmax < value; the products are exact in fp64.
uint8_t nearest_code(double value, double nested_absmax, const std::array<double, 255>& midpoints) {
  unsigned code = 0;
  for (unsigned bit = 128; bit != 0; bit /= 2)
    code += midpoints[code + bit - 1] * nested_absmax < value ? bit : 0;
  return static_cast<uint8_t>(code);
}

struct NestedBlock {
  std::span<const float> absmax;
  std::span<uint8_t> codes;
};

float quantize_block(const NestedBlock& block, float offset,
                     const std::array<double, 255>& midpoints) {
  float nested_absmax = 0.0f;
  for (const float value : block.absmax)
    nested_absmax = std::max(nested_absmax, std::fabs(value - offset));
  for (size_t i = 0; i < block.absmax.size(); ++i) {
    block.codes[i] = nested_absmax == 0.0f
                         ? kZeroCode
                         : nearest_code(block.absmax[i] - offset, nested_absmax, midpoints);
  }
  return nested_absmax;
}
}  // namespace

const std::array<float, 256>& dynamic_map(DynamicMapKind kind) {
  static const std::array<float, 256> signed_map = make_dynamic_map(DynamicMapKind::kSigned);
  static const std::array<float, 256> unsigned_map = make_dynamic_map(DynamicMapKind::kUnsigned);
  return kind == DynamicMapKind::kSigned ? signed_map : unsigned_map;
}

float absmax_offset(std::span<const float> absmax) {
  if (absmax.empty())
    return 0.0f;
  double sum = 0.0;
  for (const float value : absmax)
    sum += value;
  return static_cast<float>(sum / static_cast<double>(absmax.size()));
}

void quantize_absmax(std::span<const float> absmax, float offset, std::span<uint8_t> codes,
                     std::span<float> nested_absmax) {
  const int64_t n = std::ssize(absmax);
  const int64_t num_blocks = ceil_div(n, kNestedBlockSize);
  if (std::ssize(codes) != n || std::ssize(nested_absmax) != num_blocks)
    throw ArgumentError("quantize_absmax: " + std::to_string(n) +
                        " values need as many codes and " + std::to_string(num_blocks) +
                        " nested absmax, found " + std::to_string(codes.size()) + " and " +
                        std::to_string(nested_absmax.size()));
  static const std::array<double, 255> midpoints = make_midpoints();
  parallel_for(num_blocks, kBlocksPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kNestedBlockSize;
      const int64_t count = std::min(kNestedBlockSize, n - first);
      const NestedBlock block{absmax.subspan(first, count), codes.subspan(first, count)};
      nested_absmax[b] = quantize_block(block, offset, midpoints);
    }
  });
}

}  // namespace shardtune::quant
