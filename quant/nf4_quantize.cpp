// Highway compiles this file once per instruction set. The operations are the same in each (fp32
// multiply, divide, compare; no fused ones), so the bytes are too.
#include <algorithm>
#include <bit>
#include <cstring>

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

// One vector of normalised values to codes. Fifteen independent compares beat a search: they do not
// wait for each other.
template <class D, class V>
HWY_ATTR hn::Vec<hn::RebindToSigned<D>> count_midpoints(D d, V v, const float* midpoints) {
  const hn::RebindToSigned<D> di;
  auto code = hn::Zero(di);
  for (int m = 0; m < 15; ++m) {
    const auto below = hn::VecFromMask(d, hn::Lt(hn::Set(d, midpoints[m]), v));
    code = hn::Sub(code, hn::BitCast(di, below));
  }
  return code;
}

// x and codes are padded to whole vectors by the caller.
template <bool kDivide>
HWY_ATTR void block_codes(const float* x, int64_t count, float factor, uint8_t* codes) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* midpoints = nf4_midpoints().data();
  const auto factor_v = hn::Set(d, factor);
  const auto one = hn::Set(d, 1.0f);
  for (int64_t i = 0; i < count; i += lanes) {
    auto v = hn::LoadU(d, x + i);
    v = kDivide ? hn::Div(v, factor_v) : hn::Mul(v, factor_v);
    v = hn::Min(hn::Max(v, hn::Neg(one)), one);
    hn::StoreU(hn::DemoteTo(d8, count_midpoints(d, v, midpoints)), d8, codes + i);
  }
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

HWY_ATTR float quantize_block(const float* x, int64_t count, int64_t block_size, uint8_t* packed) {
  // bitsandbytes keeps 1 / absmax finite in this way.
  constexpr float kSmallestDivisor = 1e-38f;
  HWY_ALIGN uint8_t codes[kMaxBlockSize];
  const float absmax = block_absmax(x, count);
  const float divisor = std::max(absmax, kSmallestDivisor);
  if (count == block_size) {
    block_codes<false>(x, count, 1.0f / divisor, codes);
    pack_codes(codes, count, packed);
    return absmax;
  }
  // Zeros up to a whole vector: the first of them is also the padding of an odd count.
  HWY_ALIGN float padded[kMaxBlockSize] = {};
  std::memcpy(padded, x, static_cast<size_t>(count) * sizeof(float));
  const int64_t num_bytes = (count + 1) / 2;
  const int64_t whole = (count + 31) / 32 * 32;
  block_codes<true>(padded, whole, divisor, codes);
  pack_codes(codes, 2 * num_bytes, packed);
  return divisor;
}

}  // namespace shardtune::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::quant {

HWY_EXPORT(quantize_block);

float nf4_quantize_block(const float* x, int64_t count, int64_t block_size, uint8_t* codes) {
  return HWY_DYNAMIC_DISPATCH(quantize_block)(x, count, block_size, codes);
}

}  // namespace shardtune::quant
#endif
