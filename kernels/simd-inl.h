// Vector loads and stores of f32 or bf16 rows computed in f32, and exp. Included once per target by
// the *_cpu.cpp files, after hwy/foreach_target.h (hence the -inl name and the unusual guard).
#if defined(SHARDTUNE_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SHARDTUNE_KERNELS_SIMD_INL_H_
#undef SHARDTUNE_KERNELS_SIMD_INL_H_
#else
#define SHARDTUNE_KERNELS_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "core/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::ScalableTag<float>;
using Di = hn::RebindToSigned<Df>;
using Du = hn::RebindToUnsigned<Df>;
using Dh = hn::Rebind<uint16_t, Df>;  // bf16 bits of one f32 vector
using Vf = hn::Vec<Df>;

// Elements of a f32 or bf16 array, read as f32 (one of the pointers is null).
struct Row {
  float* f32 = nullptr;
  uint16_t* bf16 = nullptr;
  Row operator+(int64_t i) const {
    return {f32 == nullptr ? nullptr : f32 + i, bf16 == nullptr ? nullptr : bf16 + i};
  }
};

inline Row row_of(const TensorView& x) {
  if (x.dtype() == DType::kFloat32)
    return {static_cast<float*>(x.raw()), nullptr};
  return {nullptr, static_cast<uint16_t*>(x.raw())};
}

HWY_INLINE Vf from_bf16_bits(hn::Vec<Dh> bits) {
  return hn::BitCast(Df(), hn::ShiftLeft<16>(hn::PromoteTo(Du(), bits)));
}

// Round to nearest even; a NaN stays one (quietened), as core/dtype.h does it.
HWY_INLINE hn::Vec<Dh> to_bf16_bits(Vf v) {
  const Du du;
  const auto u = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(u, hn::Set(du, 0x7fff)), odd);
  const auto quiet = hn::Or(u, hn::Set(du, 0x400000));
  const auto bits = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
  return hn::DemoteTo(Dh(), hn::BitCast(Di(), hn::ShiftRight<16>(bits)));
}

HWY_INLINE Vf load(Row row, size_t i) {
  if (row.f32 != nullptr)
    return hn::LoadU(Df(), row.f32 + i);
  return from_bf16_bits(hn::LoadU(Dh(), row.bf16 + i));
}

HWY_INLINE void store(Vf v, Row row, size_t i) {
  if (row.f32 != nullptr)
    hn::StoreU(v, Df(), row.f32 + i);
  else
    hn::StoreU(to_bf16_bits(v), Dh(), row.bf16 + i);
}

// The last n < Lanes elements go through a buffer: nothing outside the array is touched.
HWY_INLINE Vf load_n(Row row, size_t i, size_t n) {
  const size_t lanes = hn::Lanes(Df());
  if (HWY_LIKELY(n >= lanes))
    return load(row, i);
  if (row.f32 != nullptr) {
    HWY_ALIGN float buffer[hn::MaxLanes(Df())] = {};
    std::memcpy(buffer, row.f32 + i, n * sizeof(float));
    return hn::Load(Df(), buffer);
  }
  HWY_ALIGN uint16_t buffer[hn::MaxLanes(Df())] = {};
  std::memcpy(buffer, row.bf16 + i, n * sizeof(uint16_t));
  return from_bf16_bits(hn::Load(Dh(), buffer));
}

HWY_INLINE void store_n(Vf v, Row row, size_t i, size_t n) {
  const size_t lanes = hn::Lanes(Df());
  if (HWY_LIKELY(n >= lanes))
    return store(v, row, i);
  if (row.f32 != nullptr) {
    HWY_ALIGN float buffer[hn::MaxLanes(Df())];
    hn::Store(v, Df(), buffer);
    std::memcpy(row.f32 + i, buffer, n * sizeof(float));
    return;
  }
  HWY_ALIGN uint16_t buffer[hn::MaxLanes(Df())];
  hn::Store(to_bf16_bits(v), Dh(), buffer);
  std::memcpy(row.bf16 + i, buffer, n * sizeof(uint16_t));
}

// Calls body(i, n) for vectors of n elements from i; the last may be short. Lambdas passed here
// need HWY_ATTR.
template <class Body>
HWY_INLINE void for_each_vector(size_t count, const Body& body) {
  const size_t lanes = hn::Lanes(Df());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes)
    body(i, lanes);
  if (i < count)
    body(i, count - i);
}

// exp(x) in f32 within 2 ulp: x = n ln 2 + r, a polynomial of degree 7 in r (Cephes' expf), scaled
// by 2^n in two steps so that denormals come out too. exp(NaN) = NaN, above 88.8 infinity, below
// -104 zero.
HWY_INLINE Vf exp_f32(Vf x) {
  const Df df;
  const Di di;
  const auto clamped = hn::Min(hn::Max(x, hn::Set(df, -110.0f)), hn::Set(df, 100.0f));
  const auto n = hn::Round(hn::Mul(clamped, hn::Set(df, 1.44269504088896341f)));
  // ln 2 in two parts, the first of few bits: n times it is exact.
  auto r = hn::NegMulAdd(n, hn::Set(df, 0.693359375f), clamped);
  r = hn::NegMulAdd(n, hn::Set(df, -2.12194440e-4f), r);
  auto p = hn::Set(df, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(df, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(df, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(df, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(df, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(df, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(df, 1.0f));
  const auto exponent = hn::NearestInt(n);
  const auto half = hn::ShiftRight<1>(exponent);
  const auto power = [&](hn::Vec<Di> e) HWY_ATTR {
    return hn::BitCast(df, hn::ShiftLeft<23>(hn::Add(e, hn::Set(di, 127))));
  };
  const auto scaled = hn::Mul(hn::Mul(p, power(half)), power(hn::Sub(exponent, half)));
  return hn::IfThenElse(hn::IsNaN(x), x, scaled);
}

HWY_INLINE Vf sigmoid_f32(Vf x) {
  const Df df;
  return hn::Div(hn::Set(df, 1.0f), hn::Add(hn::Set(df, 1.0f), exp_f32(hn::Neg(x))));
}

HWY_INLINE float sum_of_lanes(Vf v) { return hn::GetLane(hn::SumOfLanes(Df(), v)); }
HWY_INLINE float max_of_lanes(Vf v) { return hn::GetLane(hn::MaxOfLanes(Df(), v)); }

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#endif
