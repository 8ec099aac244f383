// Products with a matrix that is decoded on the way: a panel of its columns is made by all threads,
// then multiplied by all threads. Panels depend on the shape alone, so rows have the same bits at
// any number of threads.
#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/elementwise.h"
#include "kernels/few_rows.h"
#include "kernels/gemm_blocks.h"

namespace shardtune::kernels {

namespace {
// Stays in the last cache between decoding and multiplying, and is large enough that waiting for
// all threads twice costs nothing.
constexpr int64_t kPanelBytes = 4 << 20;
constexpr int64_t kDecodeGrain = 1 << 14;  // values that a thread decodes at least
constexpr int64_t kColumnStep = 64;        // a block of NF4 is not cut

int64_t panel_columns(int64_t n, int64_t k, int64_t value_bytes) {
  const int64_t fitting = kPanelBytes / (k * value_bytes) / kColumnStep * kColumnStep;
  return std::min(n, std::max(fitting, kColumnStep));
}

// On all threads, whole rows each.
void decode_panel(const BlockSource& b, const Block& panel, const TensorView& out) {
  const int64_t grain = std::max<int64_t>(kDecodeGrain / panel.num_columns, 1);
  parallel_for(panel.num_rows, grain, [&](int64_t begin, int64_t end) {
    b({panel.first_row + begin, end - begin, panel.first_column, panel.num_columns},
      out.rows(begin, end));
  });
}

// Without bf16 instructions: the same values, multiplied in f32.
void gemm_in_float32(const TensorView& a, const BlockSource& b, Transpose transpose_b,
                     const TensorView& c, Accumulate accumulate) {
  const PurposeScope purpose(Purpose::kProducts);
  const bool is_narrow = a.dtype() == DType::kBFloat16;
  const Tensor a_f32 = is_narrow ? to_float32(a) : Tensor();
  const BlockSource widened = [&b](const Block& block, const TensorView& out) {
    const Tensor narrow(out.shape(), DType::kBFloat16);
    b(block, narrow);
    cast(narrow, out);
  };
  const TensorView& a_view = is_narrow ? a_f32.view() : a;
  const BlockSource& b_f32 = is_narrow ? widened : b;
  if (c.dtype() == DType::kFloat32)
    return gemm_by_panels(a_view, b_f32, transpose_b, c, accumulate);
  const Tensor sum(c.shape(), DType::kFloat32);
  gemm_by_panels(a_view, b_f32, transpose_b, sum, Accumulate::kNo);
  copy_scaled(sum, c, accumulate);
}
}  // namespace

void for_panels(const TensorView& a, const BlockSource& b, Transpose transpose_b,
                const TensorView& c, const PanelProduct& multiply) {
  const int64_t n = c.dim(1), k = a.dim(1), value_bytes = size_of(a.dtype());
  const int64_t columns = panel_columns(n, k, value_bytes);
  const PurposeScope purpose(Purpose::kDequantised);
  // One size for all matrices of several panels: the pool hands the same buffer out again.
  const int64_t used = columns * k * value_bytes;
  const Tensor memory(Shape{columns < n ? std::max(used, kPanelBytes) : used}, DType::kUInt8);
  for (int64_t begin = 0; begin < n; begin += columns) {
    ProductSpec spec;
    spec.m = c.dim(0);
    spec.n = std::min(columns, n - begin);
    spec.k = k;
    spec.a_row_stride = k;
    spec.b_row_stride = transpose_b == Transpose::kYes ? 1 : spec.n;
    spec.b_column_stride = transpose_b == Transpose::kYes ? k : 1;
    spec.c_row_stride = n;
    spec.input_dtype = a.dtype();
    spec.output_dtype = c.dtype();
    const Shape shape = transpose_b == Transpose::kYes ? Shape{spec.n, k} : Shape{k, spec.n};
    const Block block =
        transpose_b == Transpose::kYes ? Block{begin, spec.n, 0, k} : Block{0, k, begin, spec.n};
    decode_panel(b, block, TensorView(memory.view().raw(), a.dtype(), shape));
    multiply(spec, memory.view().raw(), begin);
  }
}

void gemm_by_panels(const TensorView& a, const BlockSource& b, Transpose transpose_b,
                    const TensorView& c, Accumulate accumulate) {
  if (c.shape().ndim() != 2 || a.shape().ndim() != 2)
    fail_argument("gemm_by_panels", "a, c", c, "matrices");
  const int64_t m = c.dim(0), n = c.dim(1), k = a.dim(1);
  check_float("gemm_by_panels", "c", c);
  check_matrix("gemm_by_panels", "a", a, m, k);
  if (k == 0)
    fail_argument("gemm_by_panels", "a", a, "at least one column");
  if (m == 0 || n == 0)
    return;
  if (m <= kFewRows)
    return few_rows_product({a, transpose_b, {}, &b, c, accumulate, 1.0f, {}});
  const bool mixed = a.dtype() == DType::kFloat32 && c.dtype() == DType::kBFloat16;
  if (mixed || (a.dtype() == DType::kBFloat16 && !has_fast_bfloat16()))
    return gemm_in_float32(a, b, transpose_b, c, accumulate);
  for_panels(a, b, transpose_b, c, [&](ProductSpec spec, const void* panel, int64_t first_column) {
    spec.accumulate = accumulate;
    run_blocks(spec, a.raw(), panel,
               static_cast<std::byte*>(c.raw()) + first_column * size_of(c.dtype()));
  });
}

}  // namespace shardtune::kernels
