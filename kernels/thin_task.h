// Products with a narrow side on one thread, as plain structs and function pointers: includes
// nothing of other headers, as few_rows_task.h does not.
#pragma once

#include <cstdint>

namespace shardtune::kernels::thin {

/// c [m,n] = onto [m,n] + scale * a [m,k] b [k,n], added in f32 and rounded once.
struct Task {
  const uint16_t* a = nullptr;  // bf16
  // [pairs of k, b_stride]: rows 2p and 2p+1 of b side by side, padded by 0
  const uint32_t* b = nullptr;
  const float* onto = nullptr;
  void* c = nullptr;
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, onto_stride = 0, c_stride = 0;
  float scale = 1.0f;
  bool c_is_bf16 = false;
};

/// sums [rank, columns] (+)= scale * narrow^T wide over the tokens of one chunk.
struct TokensTask {
  // [pairs of tokens, narrow_stride]: rows 2p and 2p+1 side by side, padded by 0
  const uint32_t* narrow = nullptr;
  const uint16_t* wide = nullptr;  // bf16 [tokens, columns]
  float* sums = nullptr;
  int64_t tokens = 0, columns = 0, rank = 0;
  int64_t narrow_stride = 0, wide_stride = 0, sums_stride = 0;
  float scale = 1.0f;
  bool accumulate = false;
};

/// Columns of b are read up to the next multiple of this.
inline constexpr int64_t kColumnStep = 16;
/// Columns of narrow are read up to the next multiple of this.
inline constexpr int64_t kRankStep = 8;

struct Functions {
  void (*product)(const Task& task);
  void (*over_tokens)(const TokensTask& task);
};
/// For AVX512-BF16; null where this build has none. Call only when has_fast_bfloat16().
const Functions* machine_functions();

}  // namespace shardtune::kernels::thin
