#include "kernels/column_scale.h"

#include <algorithm>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/column_scale_cpu.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kColumnsOfTask = 512;

void check_columns(const char* op, const char* name, const TensorView& x, int64_t n) {
  if (!x.empty())
    check_float32(op, name, x, n);
}
}  // namespace

void column_scale(const ColumnScale& args) {
  constexpr const char* kOp = "column_scale";
  if (args.y.shape().ndim() != 2)
    fail_argument(kOp, "y", args.y, "a matrix");
  const int64_t rows = args.y.dim(0), n = args.y.dim(1);
  check_float(kOp, "y", args.y);
  check_float(kOp, "z", args.z);
  check_matrix(kOp, "z", args.z, rows, n);
  check_float32(kOp, "factor", args.factor, n);
  check_columns(kOp, "shift", args.shift, n);
  if (!args.copy.empty()) {
    check_float(kOp, "copy", args.copy);
    check_matrix(kOp, "copy", args.copy, rows, n);
  }
  parallel_for(rows, 16384 / std::max<int64_t>(n, 1) + 1,
               [&](int64_t begin, int64_t end) { cpu::column_scale(args, begin, end); });
}

void column_scale_backward(const ColumnScaleBackward& args) {
  constexpr const char* kOp = "column_scale_backward";
  if (args.dz.shape().ndim() != 2)
    fail_argument(kOp, "dz", args.dz, "a matrix");
  const int64_t rows = args.dz.dim(0), n = args.dz.dim(1);
  check_float(kOp, "dz", args.dz);
  check_float(kOp, "y", args.y);
  check_matrix(kOp, "y", args.y, rows, n);
  check_float32(kOp, "factor", args.factor, n);
  check_float32(kOp, "dots", args.dots, n);
  check_columns(kOp, "centre", args.centre, n);
  const int64_t chunks = ceil_div(rows, kTokenChunk), blocks = ceil_div(n, kColumnsOfTask);
  const Tensor sums = Tensor::zeros(Shape{std::max<int64_t>(chunks, 1), n}, DType::kFloat32);
  parallel_tasks(chunks * blocks, [&](int64_t task) {
    const int64_t row = task / blocks * kTokenChunk, column = task % blocks * kColumnsOfTask;
    cpu::column_scale_backward(
        args,
        {row, std::min(rows, row + kTokenChunk), column, std::min(n, column + kColumnsOfTask)},
        sums.data<float>() + task / blocks * n + column);
  });
  if (DryRun::current() != nullptr)
    return;
  std::copy_n(sums.data<float>(), n, args.dots.data<float>());
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < n; ++i)
      args.dots.data<float>()[i] += sums.data<float>()[chunk * n + i];
  }
}

}  // namespace shardtune::kernels
