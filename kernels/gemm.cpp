#include "kernels/gemm.h"

#include <algorithm>
#include <array>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/elementwise.h"
#include "kernels/elementwise_cpu.h"
#include "kernels/few_rows.h"
#include "kernels/gemm_blocks.h"
#include "kernels/thin.h"

namespace shardtune::kernels {

namespace {
// Cuts of the output. They depend on the shape alone, so that a row has the same bits at any number
// of threads; each block is one single-threaded product.
struct Cut {
  int64_t rows, columns;
};

Cut choose_cut(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kBlockRows = 256;  // repacking b costs a call about 1/rows of its work
  constexpr int64_t kBlockColumns = 768;
  if (m > kBlockRows / 2)
    return {kBlockRows, n > 2 * kBlockColumns ? kBlockColumns : n};
  // Few rows: bound by reading b, so only columns are cut: into four parts for threads, smaller
  // where these are more than 1 MiB of f32, at least 64.
  const int64_t columns =
      std::min(round_up(ceil_div(n, 4), 32), round_up(262144 / std::max<int64_t>(k, 1), 32));
  return {m, std::min(n, std::max<int64_t>(64, columns))};
}

void clear_or_keep(const TensorView& c, Accumulate accumulate) {
  if (accumulate == Accumulate::kNo)
    std::fill_n(static_cast<std::byte*>(c.raw()), c.num_bytes(), std::byte{0});
}

ProductSpec whole_product(const TensorView& a, const TensorView& b, Transpose transpose_b,
                          const TensorView& c) {
  ProductSpec spec;
  spec.m = c.dim(0);
  spec.n = c.dim(1);
  spec.k = a.dim(1);
  spec.a_row_stride = spec.k;
  spec.b_row_stride = transpose_b == Transpose::kYes ? 1 : spec.n;
  spec.b_column_stride = transpose_b == Transpose::kYes ? spec.k : 1;
  spec.c_row_stride = spec.n;
  spec.input_dtype = a.dtype();
  spec.output_dtype = c.dtype();
  return spec;
}

const std::byte* offset(const void* data, DType dtype, int64_t elements) {
  return static_cast<const std::byte*>(data) + elements * size_of(dtype);
}

/// Pieces of one size that an extent is cut into.
struct Pieces {
  int64_t count, size;
};
std::array<Pieces, 2> pieces_of(int64_t extent, int64_t step) {
  return {Pieces{extent / step, step}, Pieces{extent % step > 0 ? 1 : 0, extent % step}};
}

// Counts the scratch of a product's blocks in a dry run, of every shape there is: the pool keeps
// the buffers of each for the next product.
void count_block_scratch(const ProductSpec& whole, const Cut& cut) {
  if (DryRun::current() == nullptr)
    return;
  const PurposeScope purpose(Purpose::kProducts);
  int64_t largest = 0;
  for (const Pieces& rows : pieces_of(whole.m, cut.rows)) {
    for (const Pieces& columns : pieces_of(whole.n, cut.columns)) {
      if (rows.count * columns.count == 0)
        continue;
      ProductSpec spec = whole;
      spec.m = rows.size;
      spec.n = columns.size;
      const int64_t num_bytes = product_scratch_bytes(spec);
      count_task_scratch(rows.count * columns.count, num_bytes);
      largest = std::max(largest, num_bytes);
    }
  }
  // Threads at different shapes hold at most as if all were at the largest.
  count_task_scratch(ceil_div(whole.m, cut.rows) * ceil_div(whole.n, cut.columns), largest);
}
}  // namespace

void run_blocks(const ProductSpec& whole, const void* a, const void* b, void* c) {
  const Cut cut = choose_cut(whole.m, whole.n, whole.k);
  count_block_scratch(whole, cut);
  const int64_t column_blocks = ceil_div(whole.n, cut.columns);
  parallel_tasks(ceil_div(whole.m, cut.rows) * column_blocks, [&](int64_t task) {
    const int64_t row = task / column_blocks * cut.rows;
    const int64_t column = task % column_blocks * cut.columns;
    ProductSpec spec = whole;
    spec.m = std::min(cut.rows, whole.m - row);
    spec.n = std::min(cut.columns, whole.n - column);
    run_product(
        spec, offset(a, spec.input_dtype, row * spec.a_row_stride),
        offset(b, spec.input_dtype, column * spec.b_column_stride),
        const_cast<std::byte*>(offset(c, spec.output_dtype, row * spec.c_row_stride + column)));
  });
}

void copy_transposed(const float* from, int64_t rows, int64_t columns, int64_t from_stride,
                     float* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      to[j * to_stride + i] = from[i * from_stride + j];
}

Tensor to_float32(const TensorView& x) {
  Tensor result(x.shape(), DType::kFloat32);
  cast(x, result);
  return result;
}

namespace {
// Blocks of a token product: each is summed chunk by chunk by one thread.
constexpr int64_t kTokenProductRows = 512;
constexpr int64_t kTokenProductColumns = 256;

// Without bf16 instructions the product runs in f32 on converted inputs; a bf16 output is rounded
// once, after the addition.
void gemm_in_float32(const TensorView& a, const TensorView& b, Transpose transpose_b,
                     const TensorView& c, Accumulate accumulate, float scale) {
  const PurposeScope purpose(Purpose::kProducts);
  const bool convert_inputs = a.dtype() != DType::kFloat32;
  const Tensor a_f32 = convert_inputs ? to_float32(a) : Tensor();
  const Tensor b_f32 = convert_inputs ? to_float32(b) : Tensor();
  const TensorView& a_view = convert_inputs ? a_f32.view() : a;
  const TensorView& b_view = convert_inputs ? b_f32.view() : b;
  if (c.dtype() == DType::kFloat32)
    return gemm(a_view, b_view, transpose_b, c, accumulate, scale);
  const Tensor product(c.shape(), DType::kFloat32);
  gemm(a_view, b_view, transpose_b, product, Accumulate::kNo, scale);
  copy_scaled(product, c, accumulate);
}
}  // namespace

void gemm(const TensorView& a, const TensorView& b, Transpose transpose_b, const TensorView& c,
          Accumulate accumulate, float scale) {
  if (c.shape().ndim() != 2)
    fail_argument("gemm", "c", c, "a matrix");
  if (a.shape().ndim() != 2)
    fail_argument("gemm", "a", a, "a matrix");
  const int64_t m = c.dim(0), n = c.dim(1), k = a.dim(1);
  check_float("gemm", "c", c);
  check_matrix("gemm", "a", a, m, k);
  if (transpose_b == Transpose::kYes)
    check_matrix("gemm", "b", b, n, k);
  else
    check_matrix("gemm", "b", b, k, n);
  check_same_dtype("gemm", "b", b, a.dtype());
  if (m == 0 || n == 0)
    return;
  if (k == 0)
    return clear_or_keep(c, accumulate);
  if (m <= kFewRows)
    return few_rows_product({a, transpose_b, b, nullptr, c, accumulate, scale, {}});
  const bool mixed = a.dtype() == DType::kFloat32 && c.dtype() == DType::kBFloat16;
  if (mixed || (a.dtype() == DType::kBFloat16 && !has_fast_bfloat16()))
    return gemm_in_float32(a, b, transpose_b, c, accumulate, scale);
  ProductSpec spec = whole_product(a, b, transpose_b, c);
  spec.accumulate = accumulate;
  spec.scale = scale;
  run_blocks(spec, a.raw(), b.raw(), c.raw());
}

void gemm_onto(const TensorView& y, const TensorView& a, const TensorView& b, const TensorView& out,
               float scale) {
  if (out.shape().ndim() != 2 || a.shape().ndim() != 2)
    fail_argument("gemm_onto", "a, out", out, "matrices");
  const int64_t m = out.dim(0), n = out.dim(1), k = a.dim(1);
  check_float("gemm_onto", "out", out);
  check_matrix("gemm_onto", "y", y, m, n);
  check_same_dtype("gemm_onto", "y", y, DType::kFloat32);
  check_matrix("gemm_onto", "a", a, m, k);
  check_matrix("gemm_onto", "b", b, n, k);
  check_same_dtype("gemm_onto", "b", b, a.dtype());
  if (m == 0 || n == 0)
    return;
  if (k == 0)
    return copy_scaled(y, out, Accumulate::kNo);
  if (a.dtype() == DType::kBFloat16 && !has_fast_bfloat16())
    return gemm_onto(y, to_float32(a), to_float32(b), out, scale);
  if (m <= kFewRows)
    return few_rows_product({a, Transpose::kYes, b, nullptr, out, Accumulate::kNo, scale, y});
  if (a.dtype() == DType::kBFloat16 && k <= kThin && has_thin())
    return thin_onto(y, {a, b, scale}, out);
  ProductSpec spec = whole_product(a, b, Transpose::kYes, out);
  spec.output_dtype = DType::kFloat32;
  spec.accumulate = Accumulate::kYes;
  spec.scale = scale;
  // Blocks of whole rows, as many as a core's cache keeps between the product and the rounding.
  const int64_t rows = std::min(m, std::clamp<int64_t>(round_up(98304 / n, 16), 16, 256));
  spec.m = rows;
  if (DryRun::current() != nullptr) {
    const PurposeScope purpose(Purpose::kProducts);
    for (const Pieces& pieces : pieces_of(m, rows)) {
      if (pieces.count == 0)
        continue;
      spec.m = pieces.size;
      count_task_scratch(pieces.count, pieces.size * n * size_of(DType::kFloat32),
                         product_scratch_bytes(spec));
    }
    spec.m = rows;
    count_task_scratch(ceil_div(m, rows), rows * n * size_of(DType::kFloat32),
                       product_scratch_bytes(spec));
  }
  parallel_tasks(ceil_div(m, rows), [&](int64_t task) {
    const int64_t begin = task * rows, end = std::min(m, begin + rows);
    ProductSpec block = spec;
    block.m = end - begin;
    const Tensor sum(Shape{end - begin, n}, DType::kFloat32);
    const cpu::Range whole{0, sum.numel()};
    cpu::copy_scaled(y.rows(begin, end), sum, Accumulate::kNo, 1.0f, whole);
    run_product(block, offset(a.raw(), a.dtype(), begin * k), b.raw(), sum.data<float>());
    cpu::copy_scaled(sum, out.rows(begin, end), Accumulate::kNo, 1.0f, whole);
  });
}

namespace {
// Whether the product of an adapter's low rank is made the other way round: oneDNN takes about half
// the time for [K,T] x [T,N] where K is small.
constexpr int64_t kFewColumns = 64;

// gemm_over_tokens with few columns, as blocks of out^T. `whole`: of x^T dy.
void turned_over_tokens(ProductSpec whole, const TensorView& dy, const TensorView& x,
                        const TensorView& out, Accumulate accumulate) {
  const int64_t tokens = dy.dim(0), n = dy.dim(1), k = x.dim(1);
  whole.a_row_stride = 1;
  whole.a_column_stride = k;
  whole.b_row_stride = n;
  whole.m = k;
  const int64_t columns = std::min(n, kTokenProductColumns / 2);
  whole.c_row_stride = columns;
  const int64_t num_tasks = ceil_div(n, columns);
  if (DryRun::current() != nullptr) {
    for (const Pieces& pieces : pieces_of(n, columns)) {
      for (const int64_t chunk : {std::min(kTokenChunk, tokens), tokens % kTokenChunk}) {
        if (pieces.count == 0 || chunk == 0)
          continue;
        whole.n = pieces.size;
        whole.k = chunk;
        count_task_scratch(pieces.count, k * columns * size_of(DType::kFloat32),
                           product_scratch_bytes(whole));
      }
    }
  }
  parallel_tasks(num_tasks, [&](int64_t task) {
    const int64_t column = task * columns;
    ProductSpec spec = whole;
    spec.n = std::min(columns, n - column);
    const Tensor turned(Shape{k, columns}, DType::kFloat32);
    float* const block = out.data<float>() + column * k;
    if (accumulate == Accumulate::kYes)
      copy_transposed(block, spec.n, k, k, turned.data<float>(), columns);
    for (int64_t token = 0; token < tokens; token += kTokenChunk) {
      spec.k = std::min(kTokenChunk, tokens - token);
      spec.accumulate = token == 0 ? accumulate : Accumulate::kYes;
      run_product(spec, offset(x.raw(), x.dtype(), token * k),
                  offset(dy.raw(), dy.dtype(), token * n + column), turned.data<float>());
    }
    copy_transposed(turned.data<float>(), k, spec.n, columns, block, k);
  });
}
}  // namespace

void gemm_over_tokens(const TensorView& dy, const TensorView& x, const TensorView& out,
                      Accumulate accumulate, float scale) {
  if (dy.shape().ndim() != 2 || x.shape().ndim() != 2)
    fail_argument("gemm_over_tokens", "dy, x", dy, "matrices");
  const int64_t tokens = dy.dim(0), n = dy.dim(1), k = x.dim(1);
  check_matrix("gemm_over_tokens", "dy", dy, tokens, n);
  check_matrix("gemm_over_tokens", "x", x, tokens, k);
  check_same_dtype("gemm_over_tokens", "x", x, dy.dtype());
  check_matrix("gemm_over_tokens", "out", out, n, k);
  check_same_dtype("gemm_over_tokens", "out", out, DType::kFloat32);
  if (n == 0 || k == 0)
    return;
  if (tokens == 0)
    return clear_or_keep(out, accumulate);
  const PurposeScope purpose(Purpose::kProducts);
  if (dy.dtype() == DType::kBFloat16 && !has_fast_bfloat16())
    return gemm_over_tokens(to_float32(dy), to_float32(x), out, accumulate, scale);

  if (dy.dtype() == DType::kBFloat16 && std::min(n, k) <= kThin && has_thin())
    return k < n ? thin_over_tokens(x, dy, out, Transpose::kYes, accumulate, scale)
                 : thin_over_tokens(dy, x, out, Transpose::kNo, accumulate, scale);

  ProductSpec whole;
  whole.input_dtype = dy.dtype();
  whole.scale = scale;
  if (k <= kFewColumns && k < n)
    return turned_over_tokens(whole, dy, x, out, accumulate);
  whole.a_row_stride = 1;
  whole.a_column_stride = n;
  whole.b_row_stride = k;
  whole.c_row_stride = k;
  const int64_t columns = n <= 64 ? kTokenProductColumns / 2 : kTokenProductColumns;
  whole.m = n;
  whole.n = k;
  whole.k = std::min(kTokenChunk, tokens);
  count_block_scratch(whole, {kTokenProductRows, columns});
  if (tokens > kTokenChunk && tokens % kTokenChunk > 0) {
    ProductSpec last = whole;
    last.k = tokens % kTokenChunk;
    count_block_scratch(last, {kTokenProductRows, columns});
  }
  const int64_t column_blocks = ceil_div(k, columns);
  parallel_tasks(ceil_div(n, kTokenProductRows) * column_blocks, [&](int64_t task) {
    const int64_t row = task / column_blocks * kTokenProductRows;
    const int64_t column = task % column_blocks * columns;
    ProductSpec spec = whole;
    spec.m = std::min(kTokenProductRows, n - row);
    spec.n = std::min(columns, k - column);
    for (int64_t token = 0; token < tokens; token += kTokenChunk) {
      spec.k = std::min(kTokenChunk, tokens - token);
      spec.accumulate = token == 0 ? accumulate : Accumulate::kYes;
      run_product(spec, offset(dy.raw(), dy.dtype(), token * n + row),
                  offset(x.raw(), x.dtype(), token * k + column),
                  out.data<float>() + row * k + column);
    }
  });
}

}  // namespace shardtune::kernels
