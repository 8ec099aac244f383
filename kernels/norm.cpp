#include "kernels/norm.h"

#include "core/parallel_for.h"
#include "kernels/checks.h"
#include "kernels/elementwise.h"
#include "kernels/norm_cpu.h"

namespace shardtune::kernels {

namespace {
constexpr int64_t kGrain = 16;  // rows that are worth a thread

void sum_dweight(const cpu::NormDweight& args) {
  parallel_for(args.x.dim(1), 64,
               [&](int64_t begin, int64_t end) { cpu::norm_dweight_columns(args, begin, end); });
}
}  // namespace

void rms_norm(const TensorView& x, const TensorView& weight, float eps, const TensorView& y,
              const TensorView& rstd) {
  if (x.shape().ndim() != 2)
    fail_argument("rms_norm", "x", x, "a matrix");
  check_float("rms_norm", "x", x);
  check_float32("rms_norm", "weight", weight, x.dim(1));
  check_matrix("rms_norm", "y", y, x.dim(0), x.dim(1));
  if (!rstd.empty())
    check_float32("rms_norm", "rstd", rstd, x.dim(0));
  const cpu::RmsNormForward args{x, weight, y, rstd, eps};
  parallel_for(x.dim(0), kGrain,
               [&](int64_t begin, int64_t end) { cpu::rms_norm_rows(args, begin, end); });
}

void rms_norm_backward(const RmsNormBackward& args, Accumulate accumulate_dx) {
  if (args.x.shape().ndim() != 2)
    fail_argument("rms_norm_backward", "x", args.x, "a matrix");
  const int64_t tokens = args.x.dim(0), width = args.x.dim(1);
  check_float("rms_norm_backward", "x", args.x);
  check_matrix("rms_norm_backward", "dy", args.dy, tokens, width);
  check_float32("rms_norm_backward", "weight", args.weight, width);
  check_float32("rms_norm_backward", "rstd", args.rstd, tokens);
  check_matrix("rms_norm_backward", "dx", args.dx, tokens, width);
  // The weight's gradient first: dx may stand where dy does.
  if (!args.dweight.empty()) {
    check_float32("rms_norm_backward", "dweight", args.dweight, width);
    sum_dweight({args.dy, args.x, {}, args.rstd, args.dweight});
  }
  parallel_for(tokens, kGrain, [&](int64_t begin, int64_t end) {
    cpu::rms_norm_backward_rows(args, accumulate_dx, begin, end);
  });
}

void layer_norm(const LayerNormForward& args) {
  if (args.x.shape().ndim() != 2)
    fail_argument("layer_norm", "x", args.x, "a matrix");
  const int64_t tokens = args.x.dim(0), width = args.x.dim(1);
  check_float("layer_norm", "x", args.x);
  check_float32("layer_norm", "weight", args.weight, width);
  check_float32("layer_norm", "bias", args.bias, width);
  check_matrix("layer_norm", "y", args.y, tokens, width);
  for (const TensorView* saved : {&args.mean, &args.rstd}) {
    if (!saved->empty())
      check_float32("layer_norm", "mean and rstd", *saved, tokens);
  }
  parallel_for(tokens, kGrain,
               [&](int64_t begin, int64_t end) { cpu::layer_norm_rows(args, begin, end); });
}

void layer_norm_backward(const LayerNormBackward& args, Accumulate accumulate_dx) {
  if (args.x.shape().ndim() != 2)
    fail_argument("layer_norm_backward", "x", args.x, "a matrix");
  const int64_t tokens = args.x.dim(0), width = args.x.dim(1);
  check_float("layer_norm_backward", "x", args.x);
  check_matrix("layer_norm_backward", "dy", args.dy, tokens, width);
  check_float32("layer_norm_backward", "weight", args.weight, width);
  check_float32("layer_norm_backward", "mean", args.mean, tokens);
  check_float32("layer_norm_backward", "rstd", args.rstd, tokens);
  check_matrix("layer_norm_backward", "dx", args.dx, tokens, width);
  if (!args.dweight.empty()) {
    check_float32("layer_norm_backward", "dweight", args.dweight, width);
    sum_dweight({args.dy, args.x, args.mean, args.rstd, args.dweight});
  }
  if (!args.dbias.empty()) {
    check_float32("layer_norm_backward", "dbias", args.dbias, width);
    sum_rows(args.dy, args.dbias, Accumulate::kNo);
  }
  parallel_for(tokens, kGrain, [&](int64_t begin, int64_t end) {
    cpu::layer_norm_backward_rows(args, accumulate_dx, begin, end);
  });
}

}  // namespace shardtune::kernels
