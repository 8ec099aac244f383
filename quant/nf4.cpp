#include "quant/nf4.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/checked.h"
#include "core/parallel_for.h"
#include "quant/nf4_kernels.h"
#include "quant/rounding.h"

namespace shardtune::quant {

namespace {
constexpr int64_t kValuesPerTask = 1 << 14;

void check_sizes(std::span<const float> x, int64_t block_size, std::span<uint8_t> codes,
                 std::span<float> absmax) {
  if (!is_block_size(block_size))
    throw ArgumentError("nf4_quantize: block_size: expected one of " + block_sizes_text() +
                        ", found " + std::to_string(block_size));
  const int64_t n = std::ssize(x);
  if (std::ssize(codes) != ceil_div(n, 2) || std::ssize(absmax) != ceil_div(n, block_size))
    throw ArgumentError("nf4_quantize: " + std::to_string(n) + " values need " +
                        std::to_string(ceil_div(n, 2)) + " bytes of codes and " +
                        std::to_string(ceil_div(n, block_size)) + " absmax, found " +
                        std::to_string(codes.size()) + " and " + std::to_string(absmax.size()));
}
}  // namespace

bool is_block_size(int64_t block_size) {
  return block_size >= kMinBlockSize && block_size <= kMaxBlockSize &&
         std::has_single_bit(static_cast<uint64_t>(block_size));
}

std::string block_sizes_text() {
  std::string text;
  for (int64_t size = kMinBlockSize; size <= kMaxBlockSize; size *= 2)
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  return text;
}

namespace {
// Codes in ascending order of their values, which `sorted` gives.
FourBitCodebook make_codebook(const std::array<float, 16>& values,
                              const std::array<uint8_t, 16>& sorted) {
  FourBitCodebook book{values, {}, sorted};
  for (size_t i = 0; i < book.midpoints.size(); ++i)
    book.midpoints[i] = (values[sorted[i]] + values[sorted[i + 1]]) / 2.0f;
  return book;
}
}  // namespace

const FourBitCodebook& nf4_codebook() {
  static const FourBitCodebook book = make_codebook(
      {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
       -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
       0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
       0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
  return book;
}

const FourBitCodebook& fp4_codebook() {
  constexpr float kTiny = 0.0052083334885537624f, kSixth = 0.1666666716337204f,
                  kThird = 0.3333333432674408f, kTwoThirds = 0.6666666865348816f;
  static const FourBitCodebook book =
      make_codebook({0.0f, kTiny, kTwoThirds, 1.0f, kThird, 0.5f, kSixth, 0.25f, 0.0f, -kTiny,
                     -kTwoThirds, -1.0f, -kThird, -0.5f, -kSixth, -0.25f},
                    {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3});
  return book;
}

std::optional<int64_t> nf4_quantize(std::span<const float> x, int64_t block_size,
                                    std::span<uint8_t> codes, std::span<float> absmax,
                                    const FourBitCodebook& codebook) {
  check_sizes(x, block_size, codes, absmax);
  const int64_t n = std::ssize(x);
  const int64_t num_whole = n / block_size;
  parallel_for(num_whole, std::max<int64_t>(kValuesPerTask / block_size, 1),
               [&](int64_t begin, int64_t end) {
                 const int64_t first = begin * block_size;
                 nf4_quantize_blocks({x.data() + first, end - begin, block_size}, codebook,
                                     codes.data() + first / 2, absmax.data() + begin);
               });
  if (const int64_t rest = n % block_size; rest != 0) {
    const int64_t first = num_whole * block_size;
    absmax[num_whole] =
        nf4_quantize_short_block(x.data() + first, rest, codebook, codes.data() + first / 2);
  }
  for (int64_t b = 0; b < std::ssize(absmax); ++b) {
    if (absmax[b] <= std::numeric_limits<float>::max())
      continue;
    return first_non_finite(x.subspan(b * block_size), b * block_size);
  }
  return std::nullopt;
}

}  // namespace shardtune::quant
