// Which cores this process may use. mpirun pins a rank to one core unless told otherwise, which
// would leave a rank with several threads on a single core: the mask is widened to the rank's share
// of what mpirun itself may use (DESIGN section 8.15).
#pragma once

#include <string>

namespace shardtune {

/// Cores (not hardware threads) in this process's affinity mask, at least 1.
int num_usable_cores();

enum class MaskChange {
  kNone,     // the mask was wide enough, or nothing started us but a shell
  kBound,    // the user bound the ranks (--bind-to): the mask stays
  kWidened,  // now the rank's share
};

struct Placement {
  MaskChange change = MaskChange::kNone;
  int num_cpus = 1;  // hardware threads in the mask afterwards
};

/// Widens a mask that mpirun narrowed by default. Ranks of one host get disjoint runs of CPUs while
/// there are enough, else CPUs in turn. Call before threads are made. Never fails: a mask that
/// cannot be changed stays.
Placement widen_inherited_mask(int local_rank, int local_size);

/// Model name of the CPU and the instruction sets that matter here and may be used
/// (core/instruction_set.h), e.g. "AVX2 AVX-512 AVX512-BF16".
std::string cpu_model();
std::string cpu_features();
/// Bytes of memory this process may use: the machine's, or the cgroup's limit where lower.
long long usable_memory_bytes();

}  // namespace shardtune
