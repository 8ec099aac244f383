// Products with a second term of low rank: blocks of the first are made in f32 in the core's cache,
// and leave it with the second term added.
#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/few_rows_limit.h"
#include "kernels/gemm_blocks.h"
#include "kernels/thin.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kBlockRows = 256;

// Of a block in f32, which stays in a core's second cache beside its rows of a. It depends on the
// shape alone; one block of rows is cut into four at least, for threads.
int64_t block_columns(int64_t m, int64_t n) {
  const int64_t parts = std::max<int64_t>(ceil_div(n, 384), m <= kBlockRows ? 4 : 1);
  return std::min(n, std::max<int64_t>(64, round_up(ceil_div(n, parts), 32)));
}

void check_term(const char* name, const TensorView& a, const LowRankTerm& term,
                const TensorView& c) {
  if (c.shape().ndim() != 2 || a.shape().ndim() != 2 || term.u.shape().ndim() != 2)
    fail_argument(name, "a, c, u", c, "matrices");
  check_float(name, "c", c);
  check_matrix(name, "a", a, c.dim(0), a.dim(1));
  check_matrix(name, "u", term.u, c.dim(0), term.u.dim(1));
  check_matrix(name, "term.b", term.b, c.dim(1), term.u.dim(1));
  check_same_dtype(name, "u", term.u, a.dtype());
  check_same_dtype(name, "term.b", term.b, a.dtype());
}

bool is_one_pass(const TensorView& a, const LowRankTerm& term) {
  return a.dtype() == DType::kBFloat16 && has_thin() && a.dim(0) > kFewRows && a.dim(1) > 0 &&
         term.u.dim(1) > 0 && term.u.dim(1) <= kThin;
}

// Two passes. `product` writes the first term.
template <typename Product>
void add_after(const Product& product, const LowRankTerm& term, const TensorView& c) {
  if (c.dtype() == DType::kFloat32) {
    product(c);
    return gemm(term.u, term.b, Transpose::kYes, c, Accumulate::kYes, term.scale);
  }
  const Tensor first(c.shape(), DType::kFloat32);
  product(first.view());
  gemm_onto(first, term.u, term.b, c, term.scale);
}

void count_scratch(ProductSpec block, int64_t m, int64_t n) {
  if (DryRun::current() == nullptr)
    return;
  const int64_t width = block_columns(m, n);
  const int64_t num_tasks = ceil_div(m, kBlockRows) * ceil_div(n, width);
  for (const int64_t rows : {std::min(m, kBlockRows), m % kBlockRows}) {
    for (const int64_t columns : {width, n % width}) {
      block.m = rows;
      block.n = block.c_row_stride = columns;
      if (rows > 0 && columns > 0)
        count_task_scratch(num_tasks, rows * columns * size_of(DType::kFloat32),
                           product_scratch_bytes(block));
    }
  }
}

// Columns [first_column, first_column + whole.n) of c.
void run_blocks_with(const ProductSpec& whole, const TensorView& a, const void* b,
                     const ThinTerm& term, int64_t first_column, const TensorView& c) {
  const PurposeScope purpose(Purpose::kProducts);
  ProductSpec spec = whole;
  spec.output_dtype = DType::kFloat32;
  count_scratch(spec, whole.m, whole.n);
  const int64_t width = block_columns(whole.m, whole.n);
  const int64_t column_blocks = ceil_div(whole.n, width);
  parallel_tasks(ceil_div(whole.m, kBlockRows) * column_blocks, [&](int64_t task) {
    const int64_t row = task / column_blocks * kBlockRows;
    const int64_t column = task % column_blocks * width;
    ProductSpec block = spec;
    block.m = std::min(kBlockRows, whole.m - row);
    block.n = block.c_row_stride = std::min(width, whole.n - column);
    const Tensor sums(Shape{block.m, block.n}, DType::kFloat32);
    const int64_t value_bytes = size_of(a.dtype());
    run_product(block, static_cast<const std::byte*>(a.raw()) + row * block.k * value_bytes,
                static_cast<const std::byte*>(b) + column * block.b_column_stride * value_bytes,
                sums.data<float>());
    term.add({row, block.m, first_column + column, block.n}, sums.data<float>(), block.n, c);
  });
}
}  // namespace

void gemm_with_low_rank(const TensorView& a, const TensorView& b, const LowRankTerm& term,
                        const TensorView& c) {
  check_term("gemm_with_low_rank", a, term, c);
  check_matrix("gemm_with_low_rank", "b", b, c.dim(1), a.dim(1));
  check_same_dtype("gemm_with_low_rank", "b", b, a.dtype());
  if (!is_one_pass(a, term))
    return add_after(
        [&](const TensorView& first) { gemm(a, b, Transpose::kYes, first, Accumulate::kNo); }, term,
        c);
  ProductSpec spec;
  spec.m = c.dim(0);
  spec.n = c.dim(1);
  spec.k = spec.a_row_stride = spec.b_column_stride = a.dim(1);
  spec.b_row_stride = 1;
  spec.input_dtype = a.dtype();
  run_blocks_with(spec, a, b.raw(), ThinTerm(term), 0, c);
}

void gemm_by_panels_with_low_rank(const TensorView& a, const BlockSource& b,
                                  const LowRankTerm& term, const TensorView& c) {
  check_term("gemm_by_panels_with_low_rank", a, term, c);
  if (!is_one_pass(a, term))
    return add_after(
        [&](const TensorView& first) {
          gemm_by_panels(a, b, Transpose::kYes, first, Accumulate::kNo);
        },
        term, c);
  const ThinTerm thin_term(term);
  for_panels(a, b, Transpose::kYes, c,
             [&](const ProductSpec& spec, const void* panel, int64_t first_column) {
               run_blocks_with(spec, a, panel, thin_term, first_column, c);
             });
}

}  // namespace shardtune::kernels
