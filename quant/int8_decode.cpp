// Highway compiles this file once per instruction set; one fp32 product and one rounding in each,
// so the bytes are the same.
#include "kernels/simd_targets.h"
#include "quant/int8_kernels.h"
#include "quant/rounding.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/int8_decode.cpp"
#include <hwy/foreach_target.h>
// foreach_target must come first.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace shardtune::quant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_ATTR hn::Vec<D> products(D d, const int8_t* codes, hn::Vec<D> scale) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<int8_t, D> d8;
  return hn::Mul(hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, codes))), scale);
}

HWY_ATTR void decode_f32(const int8_t* codes, int64_t count, float scale, float* out) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(products(d, codes + i, hn::Set(d, scale)), d, out + i);
  for (; i < count; ++i)
    out[i] = static_cast<float>(codes[i]) * scale;
}

HWY_ATTR void decode_bf16(const int8_t* codes, int64_t count, float scale, uint16_t* out) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = hn::BitCast(du, products(d, codes + i, hn::Set(d, scale)));
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
    const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu)));
    const auto upper = hn::BitCast(di, hn::ShiftRight<16>(rounded));
    hn::StoreU(hn::DemoteTo(d16, upper), d16, out + i);
  }
  for (; i < count; ++i)
    out[i] = finite_to_bfloat16_bits(static_cast<float>(codes[i]) * scale);
}

}  // namespace shardtune::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::quant {

HWY_EXPORT(decode_f32);
HWY_EXPORT(decode_bf16);

void int8_decode(const int8_t* codes, int64_t count, float scale, float* out) {
  HWY_DYNAMIC_DISPATCH(decode_f32)(codes, count, scale, out);
}

void int8_decode(const int8_t* codes, int64_t count, float scale, BFloat16* out) {
  HWY_DYNAMIC_DISPATCH(decode_bf16)(codes, count, scale, reinterpret_cast<uint16_t*>(out));
}

}  // namespace shardtune::quant
#endif
