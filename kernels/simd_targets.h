// Which instruction sets the *_cpu.cpp files are compiled for: the x86-64-v2 baseline, AVX2 and
// AVX-512. Included before Highway's headers. SSE4 adds nothing over the baseline but build time.
#pragma once

#include "kernels/dispatch_limit.h"

#if defined(__x86_64__) && !defined(__AES__)
#define HWY_DISABLED_TARGETS HWY_SSE4
#endif

namespace shardtune::kernels {
/// Whoever dispatches has the limit of the environment applied while the program starts.
inline const InstructionSet kInstructionSetLimit = apply_instruction_set_limit();
}  // namespace shardtune::kernels
