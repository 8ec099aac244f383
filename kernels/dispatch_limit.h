// Holds Highway and oneDNN to core/instruction_set.h's limit.
#pragma once

#include "core/instruction_set.h"

namespace shardtune::kernels {

/// Returns the limit; the first call applies it. It comes before the first dispatch: simd_targets.h
/// makes it while the program starts.
InstructionSet apply_instruction_set_limit();

}  // namespace shardtune::kernels
