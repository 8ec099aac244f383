// Highway compiles this file once per instruction set. The operations are the same in each (fp32
// multiply, divide, compare; no fused ones), so the bytes are too.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/checked.h"
#include "kernels/simd_targets.h"
#include "quant/nf4.h"
#include "quant/nf4_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/nf4_quantize.cpp"
#include <hwy/foreach_target.h>
// foreach_target must come first.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace shardtune::quant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest magnitude as its bits: integers order finite magnitudes as floats do, and put
// infinity and NaN above them, where a float maximum would lose a NaN.
HWY_ATTR float block_absmax(const float* x, int64_t count) {
  const hn::ScalableTag<int32_t> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto magnitude_mask = hn::Set(d, 0x7fffffff);
  const auto* bits = reinterpret_cast<const int32_t*>(x);
  auto largest = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    largest = hn::Max(largest, hn::And(hn::LoadU(d, bits + i), magnitude_mask));
  int32_t result = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; i < count; ++i)
    result = std::max(result, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  return std::bit_cast<float>(result);
}

// Normalised values to codes. Fifteen compares that do not wait for each other beat a search.
template <class D, class V = hn::Vec<D>>
class MidpointCounter {
 public:
  HWY_ATTR MidpointCounter(D d, const FourBitCodebook& codebook) {
    for (size_t m = 0; m < kCount; ++m)
      midpoints_[m] = hn::Set(d, codebook.midpoints[m]);
  }

  HWY_ATTR hn::Vec<hn::RebindToSigned<D>> codes(V v) const {
    const hn::RebindToSigned<D> di;
    auto code = hn::Zero(di);
    for (size_t m = 0; m < kCount; ++m)
      code = hn::Sub(code, hn::BitCast(di, hn::VecFromMask(D(), hn::Lt(midpoints_[m], v))));
    return code;
  }

 private:
  static constexpr size_t kCount = 15;
  V midpoints_[kCount];
};

enum class Normalise { kMultiply, kDivide };

// count is a multiple of 32, which every vector length divides. v needs no clamp here: beyond the
// outermost midpoints the count does not change.
template <Normalise kHow, class Counter>
HWY_ATTR void block_codes(const Counter& counter, const float* x, int64_t count, float factor,
                          uint8_t* codes) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto factor_v = hn::Set(d, factor);
  for (int64_t i = 0; i < count; i += lanes) {
    auto v = hn::LoadU(d, x + i);
    v = kHow == Normalise::kDivide ? hn::Div(v, factor_v) : hn::Mul(v, factor_v);
    hn::StoreU(hn::DemoteTo(d8, counter.codes(v)), d8, codes + i);
  }
}

// Numbers of midpoints to codes, in place. count is a multiple of 32.
HWY_ATTR void map_codes(const FourBitCodebook& codebook, uint8_t* codes, int64_t count) {
  const hn::Full128<uint8_t> d8;
  const auto map = hn::LoadU(d8, codebook.codes.data());
  for (int64_t i = 0; i < count; i += 16)
    hn::StoreU(hn::TableLookupBytes(map, hn::LoadU(d8, codes + i)), d8, codes + i);
}

// Two codes to a byte, the first in the high nibble.
HWY_ATTR void pack_codes(const uint8_t* codes, int64_t count, uint8_t* packed) {
  const hn::ScalableTag<uint16_t> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto low_byte = hn::Set(d, 0xff);
  int64_t i = 0;
  for (; i + lanes <= count / 2; i += lanes) {
    const auto pair =
        hn::BitCast(d, hn::LoadU(hn::Repartition<uint8_t, decltype(d)>(), codes + 2 * i));
    const auto byte = hn::And(hn::Or(hn::ShiftLeft<4>(pair), hn::ShiftRight<8>(pair)), low_byte);
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di, byte)), d8, packed + i);
  }
  for (; i < count / 2; ++i)
    packed[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
}

// bitsandbytes keeps 1 / absmax finite in this way.
constexpr float kSmallestDivisor = 1e-38f;

HWY_ATTR void quantize_blocks(const Nf4Blocks& blocks, const FourBitCodebook& codebook,
                              uint8_t* packed, float* absmax) {
  const MidpointCounter counter{hn::ScalableTag<float>(), codebook};
  const int64_t size = blocks.block_size;
  // Several small blocks at a time, so that counting does not wait for the absmax of each.
  const int64_t group = kMaxBlockSize / size;
  HWY_ALIGN uint8_t codes[kMaxBlockSize];
  for (int64_t first = 0; first < blocks.num_blocks; first += group) {
    const int64_t count = std::min(group, blocks.num_blocks - first);
    const float* const x = blocks.x + first * size;
    for (int64_t b = 0; b < count; ++b)
      absmax[first + b] = block_absmax(x + b * size, size);
    for (int64_t b = 0; b < count; ++b) {
      const float factor = 1.0f / std::max(absmax[first + b], kSmallestDivisor);
      block_codes<Normalise::kMultiply>(counter, x + b * size, size, factor, codes + b * size);
    }
    map_codes(codebook, codes, count * size);
    pack_codes(codes, count * size, packed + first * size / 2);
  }
}

HWY_ATTR float quantize_short_block(const float* x, int64_t count, const FourBitCodebook& codebook,
                                    uint8_t* packed) {
  // Zeros up to a whole vector: the first of them is also the padding of an odd count.
  HWY_ALIGN float padded[kMaxBlockSize] = {};
  HWY_ALIGN uint8_t codes[kMaxBlockSize];
  std::memcpy(padded, x, static_cast<size_t>(count) * sizeof(float));
  const MidpointCounter counter{hn::ScalableTag<float>(), codebook};
  const float divisor = std::max(block_absmax(x, count), kSmallestDivisor);
  block_codes<Normalise::kDivide>(counter, padded, round_up(count, 32), divisor, codes);
  map_codes(codebook, codes, round_up(count, 32));
  pack_codes(codes, round_up(count, 2), packed);
  return divisor;
}

}  // namespace shardtune::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::quant {

HWY_EXPORT(quantize_blocks);
HWY_EXPORT(quantize_short_block);

void nf4_quantize_blocks(const Nf4Blocks& blocks, const FourBitCodebook& codebook, uint8_t* codes,
                         float* absmax) {
  HWY_DYNAMIC_DISPATCH(quantize_blocks)(blocks, codebook, codes, absmax);
}

float nf4_quantize_short_block(const float* x, int64_t count, const FourBitCodebook& codebook,
                               uint8_t* codes) {
  return HWY_DYNAMIC_DISPATCH(quantize_short_block)(x, count, codebook, codes);
}

}  // namespace shardtune::quant
#endif
