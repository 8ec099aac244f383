#include "kernels/few_rows.h"

#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/few_rows_task.h"
#include "kernels/gemm_blocks.h"

namespace shardtune::kernels {

namespace {
// Rows of b^T that a task takes, and of them those in the cache at once.
constexpr int64_t kDotRows = 32;
constexpr int64_t kDotGroup = 8;
// A block of b [K,N] in the cache: rows (even: they are taken in pairs) and most columns.
constexpr int64_t kSpreadRows = 64;

int64_t spread_columns(int64_t n) { return n >= 2048 ? 512 : n >= 512 ? 128 : 64; }

struct Prepared {
  const FewRowsProduct& product;
  const few_rows::Functions& functions;
  TensorView a;
  DType b_dtype;
  int64_t m, n, k;
};

// A block of b: where it stands, or decoded into `memory`.
few_rows::Task task_on(const Prepared& p, const Block& block, const Tensor& memory) {
  few_rows::Task task;
  task.a_stride = p.k;
  task.m = p.m;
  task.b_is_bf16 = p.b_dtype == DType::kBFloat16 ? 1 : 0;
  if (p.product.source == nullptr) {
    const int64_t stride = p.product.b.dim(1);
    task.b = static_cast<const std::byte*>(p.product.b.raw()) +
             (block.first_row * stride + block.first_column) * size_of(p.b_dtype);
    task.b_stride = stride;
  } else {
    const TensorView out(memory.view().raw(), p.b_dtype, {block.num_rows, block.num_columns});
    (*p.product.source)(block, out);
    task.b = out.raw();
    task.b_stride = block.num_columns;
  }
  return task;
}

Tensor block_memory(const Prepared& p, int64_t num_values) {
  return p.product.source == nullptr ? Tensor() : Tensor(Shape{num_values}, p.b_dtype);
}

// Both buffers of a task, in the order in which it takes them.
void count_scratch(const Prepared& p, int64_t num_tasks, int64_t sums, int64_t block_values) {
  count_task_scratch(num_tasks, sums * size_of(DType::kFloat32),
                     p.product.source == nullptr ? 0 : block_values * size_of(p.b_dtype));
}

void dot_product(const Prepared& p) {
  const int64_t rows = std::min(p.n, kDotRows), group = std::min(p.n, kDotGroup);
  const int64_t num_tasks = ceil_div(p.n, rows);
  count_scratch(p, num_tasks, p.m * rows, group * p.k);
  parallel_tasks(num_tasks, [&](int64_t i) {
    const int64_t first = i * rows, last = std::min(p.n, first + rows);
    const Tensor sums(Shape{p.m, rows}, DType::kFloat32);
    const Tensor memory = block_memory(p, group * p.k);
    for (int64_t row = first; row < last; row += group) {
      const int64_t count = std::min(group, last - row);
      few_rows::Task task = task_on(p, {row, count, 0, p.k}, memory);
      task.a = p.a.raw();
      task.n = count;
      task.k = p.k;
      task.sums = sums.data<float>() + (row - first);
      task.sums_stride = rows;
      p.functions.dot(task);
    }
    store_sums({p.product.c, first, last - first, sums.data<float>(), rows, p.product.accumulate,
                p.product.scale, p.product.onto});
  });
}

void spread_product(const Prepared& p) {
  const int64_t columns = std::min(p.n, spread_columns(p.n));
  const int64_t rows = std::min(p.k, kSpreadRows), width = few_rows::round_to_step(columns);
  const int64_t num_tasks = ceil_div(p.n, columns);
  count_scratch(p, num_tasks, p.m * width, rows * columns);
  parallel_tasks(num_tasks, [&](int64_t i) {
    const int64_t first = i * columns, count = std::min(columns, p.n - first);
    const Tensor sums = Tensor(Shape{p.m, width}, DType::kFloat32);
    std::fill_n(sums.data<float>(), sums.numel(), 0.0f);
    const Tensor memory = block_memory(p, rows * columns);
    for (int64_t row = 0; row < p.k; row += rows) {
      const int64_t length = std::min(rows, p.k - row);
      few_rows::Task task = task_on(p, {row, length, first, count}, memory);
      task.a = static_cast<const std::byte*>(p.a.raw()) + row * size_of(p.a.dtype());
      task.n = count;
      task.k = length;
      task.sums = sums.data<float>();
      task.sums_stride = width;
      p.functions.spread(task);
    }
    store_sums({p.product.c, first, count, sums.data<float>(), width, p.product.accumulate,
                p.product.scale, p.product.onto});
  });
}
}  // namespace

void few_rows_product(const FewRowsProduct& product) {
  const PurposeScope purpose(Purpose::kProducts);
  const DType dtype = product.a.dtype();
  const few_rows::Functions* const machine =
      dtype == DType::kBFloat16 && has_fast_bfloat16() ? few_rows::machine_functions() : nullptr;
  const bool widen = dtype == DType::kBFloat16 && machine == nullptr;
  const Tensor a_f32 = widen ? to_float32(product.a) : Tensor();
  const Prepared prepared{product,
                          machine != nullptr ? *machine : few_rows::float_functions(),
                          widen ? a_f32.view() : product.a,
                          dtype,
                          product.a.dim(0),
                          product.c.dim(1),
                          product.a.dim(1)};
  if (product.transpose_b == Transpose::kYes)
    dot_product(prepared);
  else
    spread_product(prepared);
}

}  // namespace shardtune::kernels
