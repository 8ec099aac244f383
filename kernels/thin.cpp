#include "kernels/thin.h"

#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/gemm_blocks.h"
#include "kernels/thin_task.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kMostInner = 64;
constexpr int64_t kRowsOfTask = 96;  // whole tiles, and small enough to share out among threads

// Rows 2p and 2p+1 of b^T side by side, column by column: what one VDPBF16PS takes.
Tensor pack_pairs(const TensorView& b) {
  const int64_t n = b.dim(0), k = b.dim(1);
  const int64_t stride = round_up(n, thin::kColumnStep), pairs = ceil_div(k, 2);
  Tensor packed(Shape{pairs, stride * 2}, DType::kBFloat16);
  if (DryRun::current() != nullptr)
    return packed;
  auto* const to = static_cast<uint32_t*>(packed.view().raw());
  const auto* const from = static_cast<const uint16_t*>(b.raw());
  for (int64_t p = 0; p < pairs; ++p) {
    const bool has_second = 2 * p + 1 < k;
    const uint16_t* const first = from + 2 * p;
    const uint16_t* const second = first + (has_second ? 1 : 0);
    const uint32_t keep = has_second ? 0xffff0000u : 0u;
    uint32_t* const row = to + p * stride;
    for (int64_t j = 0; j < n; ++j)
      row[j] = first[j * k] | ((uint32_t{second[j * k]} << 16) & keep);
    std::fill(row + n, row + stride, 0u);
  }
  return packed;
}
}  // namespace

bool is_thin(const TensorView& a) {
  return a.dtype() == DType::kBFloat16 && a.dim(1) <= kMostInner && has_fast_bfloat16() &&
         thin::machine_function() != nullptr;
}

void thin_onto(const TensorView& y, const TensorView& a, const TensorView& b, const TensorView& out,
               float scale) {
  const PurposeScope purpose(Purpose::kProducts);
  const int64_t m = out.dim(0), n = out.dim(1), k = a.dim(1);
  const Tensor packed = pack_pairs(b);
  parallel_tasks(ceil_div(m, kRowsOfTask), [&](int64_t i) {
    const int64_t row = i * kRowsOfTask;
    thin::Task task;
    task.a = static_cast<const uint16_t*>(a.raw()) + row * k;
    task.b = static_cast<const uint32_t*>(packed.view().raw());
    task.onto = y.data<float>() + row * n;
    task.c = static_cast<std::byte*>(out.raw()) + row * n * size_of(out.dtype());
    task.m = std::min(kRowsOfTask, m - row);
    task.n = n;
    task.k = k;
    task.a_stride = k;
    task.b_stride = round_up(n, thin::kColumnStep);
    task.onto_stride = task.c_stride = n;
    task.scale = scale;
    task.c_is_bf16 = out.dtype() == DType::kBFloat16;
    thin::machine_function()(task);
  });
}

}  // namespace shardtune::kernels
