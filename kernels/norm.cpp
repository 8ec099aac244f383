#include "kernels/norm.h"

#include "kernels/checks.h"
#include "kernels/reference.h"

namespace shardtune::kernels {

void rms_norm(const TensorView& x, const TensorView& weight, float eps, const TensorView& y,
              const TensorView& rstd) {
  rms_norm_reference(x, weight, eps, y, rstd);
}

void rms_norm_backward(const RmsNormBackward& args, Accumulate accumulate_dx) {
  rms_norm_backward_reference(args, accumulate_dx);
}

}  // namespace shardtune::kernels
