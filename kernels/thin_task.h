// Products over a short inner dimension on one thread, as plain structs and a function pointer:
// includes nothing of other headers, as few_rows_task.h does not.
#pragma once

#include <cstdint>

namespace shardtune::kernels::thin {

/// c [m,n] = onto [m,n] + scale * a [m,k] b [k,n], added in f32 and rounded once.
struct Task {
  const uint16_t* a = nullptr;  // bf16
  const uint32_t* b =
      nullptr;  // [pairs of k, b_stride]: rows 2p and 2p+1 side by side, padded by 0
  const float* onto = nullptr;
  void* c = nullptr;
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, onto_stride = 0, c_stride = 0;
  float scale = 1.0f;
  bool c_is_bf16 = false;
};

/// Columns of b are read up to the next multiple of this.
inline constexpr int64_t kColumnStep = 16;

using Function = void (*)(const Task& task);
/// For AVX512-BF16; null where this build has none. Call only when has_fast_bfloat16().
Function machine_function();

}  // namespace shardtune::kernels::thin
