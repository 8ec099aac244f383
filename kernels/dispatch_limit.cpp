#include "kernels/dispatch_limit.h"

#include <hwy/targets.h>

#include "kernels/gemm_onednn.h"

namespace shardtune::kernels {

namespace {

InstructionSet apply_limit() {
  const InstructionSet limit = instruction_set_limit();
#if defined(__x86_64__)
  // In Highway a better target is a lower bit.
  if (limit == InstructionSet::kAvx2)
    hwy::DisableTargets(HWY_AVX2 - 1);
  if (limit == InstructionSet::kBaseline)
    hwy::DisableTargets(HWY_SSSE3 - 1);
#endif
  limit_onednn(limit);
  return limit;
}

}  // namespace

InstructionSet apply_instruction_set_limit() {
  static const InstructionSet limit = apply_limit();
  return limit;
}

}  // namespace shardtune::kernels
