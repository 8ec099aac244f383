// The instruction sets that run-time dispatch may choose from. SHARDTUNE_MAX_CPU_ISA lowers them,
// for runs on unlike machines, whose ranks must have the same bits, and for tests of the slower
// forms: baseline (x86-64-v2) | avx2 | avx512 (without BF16 and AMX) | native, the default.
#pragma once

namespace shardtune {

enum class InstructionSet { kBaseline, kAvx2, kAvx512, kNative };

/// What the environment allows; an unknown word counts as native.
InstructionSet instruction_set_limit();

/// ConfigError when SHARDTUNE_MAX_CPU_ISA is none of the words.
void check_instruction_set_limit();

}  // namespace shardtune
