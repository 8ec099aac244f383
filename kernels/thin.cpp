#include "kernels/thin.h"

#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/gemm_blocks.h"
#include "kernels/thin_task.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kRowsOfTask = 96;     // whole tiles, and small enough to share out among threads
constexpr int64_t kColumnsOfTask = 64;  // of a product over tokens
constexpr int64_t kGrain = 512;         // rows or columns that a thread packs at least

// Two rows side by side, column by column: what one VDPBF16PS takes. No second row: zeros.
void pair_rows(const uint16_t* first, const uint16_t* second, int64_t count, uint32_t* to) {
  if (second == nullptr) {
    for (int64_t j = 0; j < count; ++j)
      to[j] = first[j];
    return;
  }
  for (int64_t j = 0; j < count; ++j)
    to[j] = first[j] | (uint32_t{second[j]} << 16);
}

/// Rows of a matrix in pairs.
struct Paired {
  Tensor values;
  int64_t stride = 0;
  uint32_t* data() const { return static_cast<uint32_t*>(values.view().raw()); }
};

Paired paired_memory(int64_t rows, int64_t columns, int64_t step) {
  const int64_t stride = round_up(columns, step);
  return {Tensor(Shape{ceil_div(rows, 2), stride * 2}, DType::kBFloat16), stride};
}

// Rows of x that follow each other.
Paired pair_rows_of(const TensorView& x) {
  const int64_t rows = x.dim(0), columns = x.dim(1);
  Paired paired = paired_memory(rows, columns, thin::kRankStep);
  parallel_for(ceil_div(rows, 2), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const uint16_t* const first = static_cast<const uint16_t*>(x.raw()) + 2 * p * columns;
      uint32_t* const row = paired.data() + p * paired.stride;
      pair_rows(first, 2 * p + 1 < rows ? first + columns : nullptr, columns, row);
      std::fill(row + columns, row + paired.stride, 0u);
    }
  });
  return paired;
}

// Rows of the transpose of x.
Paired pair_columns_of(const TensorView& x) {
  const int64_t rows = x.dim(1), columns = x.dim(0);
  Paired paired = paired_memory(rows, columns, thin::kColumnStep);
  parallel_for(paired.stride, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const uint16_t* const column = static_cast<const uint16_t*>(x.raw()) + j * rows;
      for (int64_t p = 0; 2 * p < rows; ++p) {
        const bool has_second = 2 * p + 1 < rows;
        paired.data()[p * paired.stride + j] =
            j >= columns ? 0u
                         : column[2 * p] | (has_second ? uint32_t{column[2 * p + 1]} << 16 : 0u);
      }
    }
  });
  return paired;
}
}  // namespace

bool has_thin() { return has_fast_bfloat16() && thin::machine_functions() != nullptr; }

ThinTerm::ThinTerm(const LowRankTerm& term) : term_(term) {
  const PurposeScope purpose(Purpose::kProducts);
  Paired paired = pair_columns_of(term.b);
  pairs_ = std::move(paired.values);
  pair_stride_ = paired.stride;
}

void ThinTerm::add(const Block& block, const float* onto, int64_t onto_stride,
                   const TensorView& c) const {
  const int64_t rank = term_.u.dim(1), columns = c.dim(1);
  thin::Task task;
  task.a = static_cast<const uint16_t*>(term_.u.raw()) + block.first_row * rank;
  task.b = static_cast<const uint32_t*>(pairs_.view().raw()) + block.first_column;
  task.onto = onto;
  task.c = static_cast<std::byte*>(c.raw()) +
           (block.first_row * columns + block.first_column) * size_of(c.dtype());
  task.m = block.num_rows;
  task.n = block.num_columns;
  task.k = task.a_stride = rank;
  task.b_stride = pair_stride_;
  task.onto_stride = onto_stride;
  task.c_stride = columns;
  task.scale = term_.scale;
  task.c_is_bf16 = c.dtype() == DType::kBFloat16;
  thin::machine_functions()->product(task);
}

void thin_onto(const TensorView& y, const LowRankTerm& term, const TensorView& out) {
  const int64_t m = out.dim(0), n = out.dim(1);
  const ThinTerm thin_term(term);
  parallel_tasks(ceil_div(m, kRowsOfTask), [&](int64_t i) {
    const int64_t row = i * kRowsOfTask;
    thin_term.add({row, std::min(kRowsOfTask, m - row), 0, n}, y.data<float>() + row * n, n, out);
  });
}

namespace {
// All chunks of some columns.
void sum_columns(const Paired& narrow, const TensorView& wide, int64_t first,
                 const thin::TokensTask& columns) {
  const int64_t num_tokens = wide.dim(0);
  thin::TokensTask task = columns;
  for (int64_t token = 0; token < num_tokens; token += kTokenChunk) {
    task.narrow = narrow.data() + token / 2 * narrow.stride;
    task.wide = static_cast<const uint16_t*>(wide.raw()) + token * task.wide_stride + first;
    task.tokens = std::min(kTokenChunk, num_tokens - token);
    task.accumulate = columns.accumulate || token > 0;
    thin::machine_functions()->over_tokens(task);
  }
}
}  // namespace

void thin_over_tokens(const TensorView& narrow, const TensorView& wide, const TensorView& out,
                      Transpose transpose_out, Accumulate accumulate, float scale) {
  static_assert(kTokenChunk % 2 == 0, "pairs do not cross chunks");
  const PurposeScope purpose(Purpose::kProducts);
  const int64_t rank = narrow.dim(1), n = wide.dim(1);
  const Paired paired = pair_rows_of(narrow);
  const int64_t step = std::min(n, kColumnsOfTask), num_tasks = ceil_div(n, step);
  const bool turned = transpose_out == Transpose::kYes;
  if (turned)
    count_task_scratch(num_tasks, rank * step * size_of(DType::kFloat32));
  parallel_tasks(num_tasks, [&](int64_t i) {
    const int64_t first = i * step;
    thin::TokensTask task;
    task.columns = std::min(step, n - first);
    task.rank = rank;
    task.narrow_stride = paired.stride;
    task.wide_stride = n;
    task.scale = scale;
    task.accumulate = accumulate == Accumulate::kYes;
    task.sums = out.data<float>() + first;
    task.sums_stride = n;
    if (!turned)
      return sum_columns(paired, wide, first, task);
    const Tensor memory(Shape{rank, step}, DType::kFloat32);
    float* const to = out.data<float>() + first * rank;
    task.sums = memory.data<float>();
    task.sums_stride = step;
    if (task.accumulate)
      copy_transposed(to, task.columns, rank, rank, task.sums, step);
    sum_columns(paired, wide, first, task);
    copy_transposed(task.sums, rank, task.columns, step, to, rank);
  });
}

}  // namespace shardtune::kernels
