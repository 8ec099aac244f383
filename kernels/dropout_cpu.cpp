// foreach_target.h stands before every other header of Highway.
// clang-format off
#include "kernels/dropout_cpu.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/dropout_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

using Vu = hn::Vec<Du>;

// Both halves of the 64-bit products of 32-bit lanes.
HWY_INLINE void multiply_wide(Vu a, Vu b, Vu& high, Vu& low) {
  const Du du;
  const hn::Repartition<uint64_t, Du> du64;
  const auto odd_of = [&](Vu v) HWY_ATTR {
    return hn::BitCast(du, hn::ShiftRight<32>(hn::BitCast(du64, v)));
  };
  const auto even = hn::MulEven(a, b), odd = hn::MulEven(odd_of(a), odd_of(b));
  high = hn::OddEven(hn::BitCast(du, odd), hn::BitCast(du, hn::ShiftRight<32>(even)));
  low = hn::Mul(a, b);
}

// core/rng.h's philox for as many counters as there are lanes, c0 = first, first + 1, ...
HWY_INLINE void philox_lanes(const cpu::DropoutRow& row, uint32_t first, uint32_t* words) {
  const Du du;
  Vu c0 = hn::Iota(du, first), c1 = hn::Set(du, row.token);
  Vu c2 = hn::Set(du, static_cast<uint32_t>(row.sample));
  Vu c3 = hn::Set(du, static_cast<uint32_t>(row.sample >> 32));
  Vu key0 = hn::Set(du, static_cast<uint32_t>(row.seed));
  Vu key1 = hn::Set(du, static_cast<uint32_t>(row.seed >> 32));
  const Vu multiplier0 = hn::Set(du, 0xD2511F53u), multiplier1 = hn::Set(du, 0xCD9E8D57u);
  for (int round = 0; round < 10; ++round) {
    Vu high0 = c0, low0 = c0, high1 = c0, low1 = c0;
    multiply_wide(multiplier0, c0, high0, low0);
    multiply_wide(multiplier1, c2, high1, low1);
    c0 = hn::Xor(hn::Xor(high1, c1), key0);
    c1 = low1;
    c2 = hn::Xor(hn::Xor(high0, c3), key1);
    c3 = low0;
    key0 = hn::Add(key0, hn::Set(du, 0x9E3779B9u));
    key1 = hn::Add(key1, hn::Set(du, 0xBB67AE85u));
  }
  hn::StoreInterleaved4(c0, c1, c2, c3, du, words);
}

void DropRow(const cpu::DropoutRow& row, const TensorView& x, const TensorView& y,
             Accumulate accumulate) {
  const Df df;
  const Di di;
  const Du du;
  const size_t lanes = hn::Lanes(df), width = static_cast<size_t>(x.numel());
  const Row in = row_of(x), out = row_of(y);
  const auto threshold = hn::Set(di, static_cast<int32_t>(row.threshold));
  const Vf scale = hn::Set(df, row.scale);
  HWY_ALIGN uint32_t words[4 * hn::MaxLanes(Du())];
  for (size_t first = 0; first < width; first += 4 * lanes) {
    philox_lanes(row, static_cast<uint32_t>(first / 4), words);
    for_each_vector(HWY_MIN(width - first, 4 * lanes), [&](size_t i, size_t n) HWY_ATTR {
      // 24 bits compare alike as signed numbers. A select, not a product: a dropped infinity
      // leaves no NaN.
      const auto drawn = hn::BitCast(di, hn::ShiftRight<8>(hn::Load(du, words + i)));
      const auto dropped = hn::RebindMask(df, hn::Lt(drawn, threshold));
      const Vf kept = hn::Mul(load_n(in, first + i, n), scale);
      Vf value = hn::IfThenElse(dropped, hn::Zero(df), kept);
      if (accumulate == Accumulate::kYes)
        value = hn::Add(load_n(out, first + i, n), value);
      store_n(value, out, first + i, n);
    });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {
HWY_EXPORT(DropRow);

namespace cpu {
void dropout_row(const DropoutRow& row, const TensorView& x, const TensorView& y,
                 Accumulate accumulate) {
  HWY_DYNAMIC_DISPATCH(DropRow)(row, x, y, accumulate);
}
}  // namespace cpu
}  // namespace shardtune::kernels
#endif
