#include "kernels/gemm_int8.h"

#include <algorithm>
#include <cstring>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/gemm_int8_cpu.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kRowsPerTask = 32;  // of quantising

void check_vector(const char* op, const char* name, const TensorView& x, int64_t count) {
  if (x.dtype() != DType::kFloat32 || x.numel() != count)
    fail_argument(op, name, x, "float32 [" + std::to_string(count) + "]");
}
}  // namespace

Int8Rows quantize_rows_int8(const TensorView& x, const TensorView& factors) {
  if (x.shape().ndim() != 2 || x.dim(1) > kInt8MaxDepth)
    fail_argument("quantize_rows_int8", "x", x,
                  "a matrix of at most " + std::to_string(kInt8MaxDepth) + " columns");
  check_float("quantize_rows_int8", "x", x);
  const int64_t rows = x.dim(0), depth = x.dim(1), padded = round_up(depth, 4);
  check_vector("quantize_rows_int8", "factors", factors, depth);
  const PurposeScope purpose(Purpose::kProducts);
  Int8Rows result;
  result.depth = depth;
  result.codes = Tensor(Shape{rows, padded}, DType::kInt8);
  result.scales = Tensor(Shape{rows}, DType::kFloat32);
  result.sums = Tensor(Shape{rows}, DType::kInt32);
  auto* const codes = result.codes.data<int8_t>();
  auto* const scales = result.scales.data<float>();
  auto* const sums = result.sums.data<int32_t>();
  const float* const by = factors.data<float>();
  parallel_for(rows, kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int8::RowCodes row = int8::quantize_row(x, r, by, padded, codes + r * padded);
      scales[r] = row.scale;
      sums[r] = row.sum;
    }
  });
  return result;
}

namespace int8 {
namespace {
// As gemm_by_panels: a panel stays in the last cache between packing and multiplying.
constexpr int64_t kPanelBytes = 4 << 20;
constexpr int64_t kPackRows = 16;   // rows of W that a task decodes at once
constexpr int64_t kBlockRows = 96;  // of a: its codes stay in the second cache
constexpr int64_t kBlockTiles = 4;

/// Columns [begin, end) of op(q), packed as [tiles][quads][64][4] codes.
struct Panel {
  uint8_t* codes = nullptr;
  int64_t begin = 0, end = 0;
  int64_t depth = 0;

  int64_t quads() const { return ceil_div(depth, 4); }
  int64_t tiles() const { return ceil_div(end - begin, kTileColumns); }
  uint8_t* tile(int64_t index) const { return codes + index * quads() * 4 * kTileColumns; }
};

int64_t decoded_floats(int64_t columns) { return kPackRows * columns; }
int64_t code_bytes(int64_t columns) { return 4 * round_up(columns, kTileColumns); }

void read_block(const Int8Weight& weight, const Block& block, float* out) {
  weight.blocks(block, TensorView(out, DType::kFloat32, {block.num_rows, block.num_columns}));
}

struct Scratch {
  Scratch(int64_t num_floats, int64_t num_codes)
      : floats(Shape{num_floats}, DType::kFloat32), codes(Shape{num_codes}, DType::kUInt8) {
    std::fill_n(codes.data<uint8_t>(), num_codes, uint8_t{0});
  }
  Tensor floats, codes;
};

/// Rows [first, last) of W are columns of op(q) = q^T: quads of a row go to every 256th byte.
void pack_as_columns(const Int8Weight& weight, const Panel& panel, int64_t first, int64_t last,
                     const Scratch& scratch) {
  const int64_t columns = weight.columns;
  auto* const floats = scratch.floats.data<float>();
  auto* const codes = scratch.codes.data<uint8_t>();
  read_block(weight, {first, last - first, 0, columns}, floats);
  for (int64_t row = first; row < last; ++row) {
    weight_codes(floats + (row - first) * columns, weight.column_factors, weight.row_factors[row],
                 columns, codes);
    const int64_t column = row - panel.begin;
    uint8_t* to = panel.tile(column / kTileColumns) + 4 * (column % kTileColumns);
    for (int64_t quad = 0; quad < panel.quads(); ++quad, to += 4 * kTileColumns)
      std::memcpy(to, codes + 4 * quad, 4);
  }
}

/// Rows [first, last) of W are a part of the depth: four of them make the quads of all columns.
void pack_as_depth(const Int8Weight& weight, const Panel& panel, int64_t first, int64_t last,
                   const Scratch& scratch) {
  const int64_t columns = panel.end - panel.begin, stride = round_up(columns, kTileColumns);
  auto* const floats = scratch.floats.data<float>();
  auto* const codes = scratch.codes.data<uint8_t>();
  read_block(weight, {first, last - first, panel.begin, columns}, floats);
  for (int64_t row = first; row < last; row += 4) {
    const uint8_t* rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      uint8_t* const to = codes + i * stride;
      rows[i] = to;
      if (row + i < last)
        weight_codes(floats + (row + i - first) * columns, weight.column_factors + panel.begin,
                     weight.row_factors[row + i], columns, to);
    }
    for (int64_t tile = 0; tile < panel.tiles(); ++tile) {
      interleave_codes(rows, panel.tile(tile) + row / 4 * 4 * kTileColumns);
      for (const uint8_t*& from : rows)
        from += kTileColumns;
    }
  }
}

void pack(const Int8Weight& weight, Transpose transpose, const Panel& panel) {
  const bool as_columns = transpose == Transpose::kYes;
  const int64_t columns = as_columns ? weight.columns : panel.end - panel.begin;
  const int64_t base = as_columns ? panel.begin : 0;
  const int64_t rows = as_columns ? panel.end - panel.begin : weight.rows;
  const int64_t num_tasks = ceil_div(rows, kPackRows);
  count_task_scratch(num_tasks, decoded_floats(columns) * size_of(DType::kFloat32),
                     code_bytes(columns));
  parallel_tasks(num_tasks, [&](int64_t task) {
    const int64_t first = base + task * kPackRows;
    const int64_t last = std::min(first + kPackRows, base + rows);
    const Scratch scratch(decoded_floats(columns), code_bytes(columns));
    if (as_columns)
      pack_as_columns(weight, panel, first, last, scratch);
    else
      pack_as_depth(weight, panel, first, last, scratch);
  });
}

struct Output {
  const float* scales;  // of the panel's columns
  TensorView c;
  Accumulate accumulate;
};

/// Rows [first, last) of a by tiles [tile_begin, tile_end) of the panel.
void multiply_block(const Int8Rows& a, const Panel& panel, const Output& output,
                    TileFunction multiply, int64_t first, int64_t last, int64_t tile_begin,
                    int64_t tile_end) {
  alignas(64) int32_t sums[kTileRows * kTileColumns];
  const int64_t stride = a.codes.view().dim(1), width = output.c.dim(1);
  for (int64_t index = tile_begin; index < tile_end; ++index) {
    const int64_t column = index * kTileColumns;
    const int64_t count = std::min(kTileColumns, panel.end - panel.begin - column);
    for (int64_t row = first; row < last; row += kTileRows) {
      const int64_t rows = std::min(kTileRows, last - row);
      multiply({a.codes.data<int8_t>() + row * stride, stride, rows, panel.tile(index),
                panel.quads(), sums});
      for (int64_t r = row; r < row + rows; ++r) {
        finish_row({sums + (r - row) * kTileColumns, a.sums.data<int32_t>()[r],
                    a.scales.data<float>()[r], output.scales + column, count, output.accumulate},
                   output.c, r * width + panel.begin + column);
      }
    }
  }
}

void multiply_panel(const Int8Rows& a, const Panel& panel, const Output& output,
                    TileFunction multiply) {
  const int64_t rows = output.c.dim(0);
  const int64_t groups = ceil_div(panel.tiles(), kBlockTiles);
  parallel_tasks(ceil_div(rows, kBlockRows) * groups, [&](int64_t task) {
    const int64_t row = task / groups * kBlockRows, tile = task % groups * kBlockTiles;
    multiply_block(a, panel, output, multiply, row, std::min(row + kBlockRows, rows), tile,
                   std::min(tile + kBlockTiles, panel.tiles()));
  });
}
}  // namespace

void gemm(const Int8Rows& a, const Int8Weight& weight, Transpose transpose,
          const TensorView& scales, const TensorView& c, Accumulate accumulate, TileFunction tile) {
  const bool as_columns = transpose == Transpose::kYes;
  const int64_t n = as_columns ? weight.rows : weight.columns;
  const int64_t depth = as_columns ? weight.columns : weight.rows;
  check_float("gemm_int8", "c", c);
  check_matrix("gemm_int8", "c", c, a.scales.view().numel(), n);
  check_vector("gemm_int8", "scales", scales, n);
  if (depth != a.depth)
    throw ArgumentError("gemm_int8: expected rows of " + std::to_string(depth) + " codes, found " +
                        std::to_string(a.depth));
  if (c.numel() == 0)
    return;
  const PurposeScope purpose(Purpose::kDequantised);
  const int64_t column_bytes = round_up(depth, 4);
  const int64_t fitting = kPanelBytes / column_bytes / kTileColumns * kTileColumns;
  const int64_t columns = std::min(n, std::max(fitting, kTileColumns));
  // One size for all matrices of several panels: the pool hands the same buffer out again.
  const int64_t used = round_up(columns, kTileColumns) * column_bytes;
  const Tensor memory(Shape{columns < n ? std::max(used, kPanelBytes) : used}, DType::kUInt8);
  for (int64_t begin = 0; begin < n; begin += columns) {
    const Panel panel{memory.data<uint8_t>(), begin, std::min(begin + columns, n), depth};
    pack(weight, transpose, panel);
    multiply_panel(a, panel, {scales.data<float>() + begin, c, accumulate}, tile);
  }
}
}  // namespace int8

void gemm_int8(const Int8Rows& a, const Int8Weight& weight, Transpose transpose,
               const TensorView& scales, const TensorView& c, Accumulate accumulate) {
  int8::gemm(a, weight, transpose, scales, c, accumulate,
             has_fast_int8() ? int8::machine_tile() : &int8::portable_tile);
}

void row_absmax_int8(const Int8Weight& weight, float* absmax) {
  const int64_t floats = int8::kPackRows * weight.columns;
  const int64_t num_tasks = ceil_div(weight.rows, int8::kPackRows);
  const PurposeScope purpose(Purpose::kDequantised);
  count_task_scratch(num_tasks, floats * size_of(DType::kFloat32));
  parallel_tasks(num_tasks, [&](int64_t task) {
    const int64_t first = task * int8::kPackRows;
    const int64_t last = std::min(first + int8::kPackRows, weight.rows);
    const Tensor decoded(Shape{floats}, DType::kFloat32);
    int8::read_block(weight, {first, last - first, 0, weight.columns}, decoded.data<float>());
    for (int64_t row = first; row < last; ++row)
      absmax[row] = int8::row_absmax(decoded.data<float>() + (row - first) * weight.columns,
                                     weight.column_factors, weight.columns);
  });
}

}  // namespace shardtune::kernels
