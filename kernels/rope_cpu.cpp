// foreach_target.h stands before every other header of Highway.
// clang-format off
#include "kernels/rope_cpu.h"
#include "kernels/simd_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/rope_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <vector>
#include "kernels/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace shardtune::kernels {
namespace HWY_NAMESPACE {

using Dd = hn::ScalableTag<double>;
using Ds = hn::Rebind<float, Dd>;  // as many floats as a vector holds doubles
using Dsi = hn::Rebind<int32_t, Dd>;

// sin and cos of f32 angles within 2 ulp of the larger of them. The quarter turn is taken off in
// fp64: positions of 10^5 and more lose nothing.
HWY_INLINE void sine_cosine(hn::Vec<Ds> angle, hn::Vec<Ds>& sine, hn::Vec<Ds>& cosine) {
  const Dd dd;
  const Ds ds;
  const Dsi di;
  const auto wide = hn::PromoteTo(dd, angle);
  const auto turns = hn::Round(hn::Mul(wide, hn::Set(dd, 0.63661977236758134308)));
  const auto r = hn::DemoteTo(ds, hn::NegMulAdd(turns, hn::Set(dd, 1.57079632679489661923), wide));
  const auto quadrant = hn::DemoteTo(di, turns);
  const auto r2 = hn::Mul(r, r);
  auto s = hn::MulAdd(hn::Set(ds, -1.9515295891e-4f), r2, hn::Set(ds, 8.3321608736e-3f));
  s = hn::MulAdd(s, r2, hn::Set(ds, -1.6666654611e-1f));
  s = hn::MulAdd(hn::Mul(s, r2), r, r);
  auto c = hn::MulAdd(hn::Set(ds, 2.443315711809948e-5f), r2, hn::Set(ds, -1.388731625493765e-3f));
  c = hn::MulAdd(c, r2, hn::Set(ds, 4.166664568298827e-2f));
  c = hn::MulAdd(hn::Mul(r2, r2), c, hn::NegMulAdd(hn::Set(ds, 0.5f), r2, hn::Set(ds, 1.0f)));
  const auto one = hn::Set(di, 1), two = hn::Set(di, 2);
  const auto swap = hn::RebindMask(ds, hn::Eq(hn::And(quadrant, one), one));
  const auto sine_sign = hn::ShiftLeft<30>(hn::And(quadrant, two));
  const auto cosine_sign = hn::ShiftLeft<30>(hn::And(hn::Add(quadrant, one), two));
  sine = hn::Xor(hn::IfThenElse(swap, c, s), hn::BitCast(ds, sine_sign));
  cosine = hn::Xor(hn::IfThenElse(swap, s, c), hn::BitCast(ds, cosine_sign));
}

// Tables of one token, padded to whole vectors.
struct Tables {
  std::vector<float> frequencies, sine, cosine;
};

void fill_tables(float position, float sign, Tables& tables) {
  const Ds ds;
  const auto p = hn::Set(ds, position), flip = hn::Set(ds, sign);
  for (size_t i = 0; i < tables.frequencies.size(); i += hn::Lanes(ds)) {
    auto s = hn::Zero(ds), c = hn::Zero(ds);
    sine_cosine(hn::Mul(p, hn::LoadU(ds, tables.frequencies.data() + i)), s, c);
    hn::StoreU(hn::Mul(s, flip), ds, tables.sine.data() + i);
    hn::StoreU(c, ds, tables.cosine.data() + i);
  }
}

void RopeRows(const TensorView& x, const RopeArgs& args, RopeDirection direction, int64_t begin,
              int64_t end) {
  const auto half = static_cast<int64_t>(args.inverse_frequencies.size());
  const int64_t width = x.dim(1), heads = width / (2 * half);
  Tables tables;
  tables.frequencies.assign(args.inverse_frequencies.begin(), args.inverse_frequencies.end());
  tables.frequencies.resize((static_cast<size_t>(half) + 15) / 16 * 16, 0.0f);
  tables.sine.resize(tables.frequencies.size());
  tables.cosine.resize(tables.frequencies.size());
  const Row sine{tables.sine.data(), nullptr}, cosine{tables.cosine.data(), nullptr};
  for (int64_t t = begin; t < end; ++t) {
    const int64_t position = args.positions[static_cast<size_t>(t)];
    fill_tables(static_cast<float>(position), direction == RopeDirection::kForward ? 1.0f : -1.0f,
                tables);
    for (int64_t h = 0; h < heads; ++h) {
      const Row first = row_of(x) + (t * width + h * 2 * half), second = first + half;
      for_each_vector(static_cast<size_t>(half), [&](size_t i, size_t n) HWY_ATTR {
        const Vf x1 = load_n(first, i, n), x2 = load_n(second, i, n);
        const Vf s = load_n(sine, i, n), c = load_n(cosine, i, n);
        store_n(hn::NegMulAdd(x2, s, hn::Mul(x1, c)), first, i, n);
        store_n(hn::MulAdd(x1, s, hn::Mul(x2, c)), second, i, n);
      });
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace shardtune::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::kernels {
HWY_EXPORT(RopeRows);

namespace cpu {
void rope_rows(const TensorView& x, const RopeArgs& args, RopeDirection direction, int64_t begin,
               int64_t end) {
  HWY_DYNAMIC_DISPATCH(RopeRows)(x, args, direction, begin, end);
}
}  // namespace cpu
}  // namespace shardtune::kernels
#endif
