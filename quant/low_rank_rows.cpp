// Highway compiles this file once per instruction set. Products and sums are rounded one by one in
// each, so the bits are the same.
#include "quant/low_rank_rows.h"

#include <algorithm>

#include "kernels/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/low_rank_rows.cpp"
#include <hwy/foreach_target.h>
// foreach_target must come first.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace shardtune::quant::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// kRows rows of B against the whole of A, two vectors of columns at a time.
template <int kRows>
HWY_ATTR void add_rows(const float* a, const float* b, int64_t rank, int64_t columns, float scale,
                       float* out) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  using V = hn::Vec<decltype(d)>;
  const auto scale_v = hn::Set(d, scale);
  int64_t j = 0;
  for (; j + 2 * lanes <= columns; j += 2 * lanes) {
    V low[kRows], high[kRows];
    for (int i = 0; i < kRows; ++i)
      low[i] = high[i] = hn::Zero(d);
    for (int64_t k = 0; k < rank; ++k) {
      const auto a_low = hn::LoadU(d, a + k * columns + j);
      const auto a_high = hn::LoadU(d, a + k * columns + j + lanes);
      for (int i = 0; i < kRows; ++i) {
        const auto b_v = hn::Set(d, b[i * rank + k]);
        low[i] = hn::Add(low[i], hn::Mul(b_v, a_low));
        high[i] = hn::Add(high[i], hn::Mul(b_v, a_high));
      }
    }
    for (int i = 0; i < kRows; ++i) {
      float* const to = out + i * columns + j;
      hn::StoreU(hn::Add(hn::LoadU(d, to), hn::Mul(scale_v, low[i])), d, to);
      hn::StoreU(hn::Add(hn::LoadU(d, to + lanes), hn::Mul(scale_v, high[i])), d, to + lanes);
    }
  }
  for (; j < columns; ++j) {
    for (int i = 0; i < kRows; ++i) {
      float sum = 0.0f;
      for (int64_t k = 0; k < rank; ++k)
        sum += b[i * rank + k] * a[k * columns + j];
      out[i * columns + j] += scale * sum;
    }
  }
}

HWY_ATTR void add_all_rows(const LowRankChange& change, int64_t begin, int64_t count, float* out) {
  constexpr int kGroup = 4;
  const int64_t rank = change.lora_A.dim(0), columns = change.lora_A.dim(1);
  const float* const a = change.lora_A.data<const float>();
  const float* b = change.lora_B.data<const float>() + begin * rank;
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup, b += kGroup * rank, out += kGroup * columns)
    add_rows<kGroup>(a, b, rank, columns, change.scale, out);
  for (; i < count; ++i, b += rank, out += columns)
    add_rows<1>(a, b, rank, columns, change.scale, out);
}

}  // namespace shardtune::quant::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace shardtune::quant {

HWY_EXPORT(add_all_rows);

namespace {

void check_change(const LowRankChange& change, int64_t begin, int64_t end) {
  const TensorView& a = change.lora_A;
  const TensorView& b = change.lora_B;
  const bool fits = a.dtype() == DType::kFloat32 && b.dtype() == DType::kFloat32 &&
                    a.shape().ndim() == 2 && b.shape().ndim() == 2 && a.dim(0) == b.dim(1);
  if (!fits || begin < 0 || begin > end || end > b.dim(0))
    throw ArgumentError(
        "add_low_rank_rows: expected f32 A [r, in], B [out, r] and rows of B, found " +
        a.shape().to_string() + ", " + b.shape().to_string() + " and rows [" +
        std::to_string(begin) + ", " + std::to_string(end) + ")");
}

}  // namespace

void add_low_rank_rows(const LowRankChange& change, int64_t begin, int64_t end, float* out) {
  check_change(change, begin, end);
  HWY_DYNAMIC_DISPATCH(add_all_rows)(change, begin, end - begin, out);
}

void add_low_rank_rows_reference(const LowRankChange& change, int64_t begin, int64_t end,
                                 float* out) {
  check_change(change, begin, end);
  const int64_t rank = change.lora_A.dim(0), columns = change.lora_A.dim(1);
  const auto* const a = change.lora_A.data<const float>();
  const auto* const b = change.lora_B.data<const float>();
  for (int64_t i = begin; i < end; ++i, out += columns) {
    for (int64_t j = 0; j < columns; ++j) {
      float sum = 0.0f;
      for (int64_t k = 0; k < rank; ++k)
        sum += b[i * rank + k] * a[k * columns + j];
      out[j] += change.scale * sum;
    }
  }
}

}  // namespace shardtune::quant
#endif
