// Stands in for thin_avx512bf16.cpp where the build is for another architecture.
#include "kernels/thin_task.h"

namespace shardtune::kernels::thin {

const Functions* machine_functions() { return nullptr; }

}  // namespace shardtune::kernels::thin
