// Stands in for few_rows_avx512bf16.cpp where the build is for another architecture.
#include "kernels/few_rows_task.h"

namespace shardtune::kernels::few_rows {

const Functions* machine_functions() { return nullptr; }

}  // namespace shardtune::kernels::few_rows
