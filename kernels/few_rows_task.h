// Products with few rows on one thread, as plain structs and function pointers: includes nothing of
// other headers, so that a file compiled for AVX-512 leaves no inline function for the linker to
// pick on other machines.
#pragma once

#include <cstdint>

namespace shardtune::kernels::few_rows {

/// a [m,k], b [n,k] (dot) or [k,n] (spread), sums [m,n] f32, each with its row stride in elements.
struct Task {
  const void* a = nullptr;
  const void* b = nullptr;
  float* sums = nullptr;
  int64_t m = 0, n = 0, k = 0;
  int64_t a_stride = 0, b_stride = 0, sums_stride = 0;
  int64_t b_is_bf16 = 0;  // the machine's form: always 1, and a is bf16 too; else a is f32
};

/// spread may read and write sums up to the next multiple of 32 columns.
inline constexpr int64_t kSpreadStep = 32;
inline constexpr int64_t round_to_step(int64_t columns) {
  return (columns + kSpreadStep - 1) / kSpreadStep * kSpreadStep;
}

/// The order of a sum depends on k alone (spread: on how the caller cuts k, at even places).
struct Functions {
  void (*dot)(const Task& task);     // sums = a b^T
  void (*spread)(const Task& task);  // sums += a b
};

/// For AVX512-BF16; null where this build has none. Call only when has_fast_bfloat16().
const Functions* machine_functions();
/// In f32 with Highway, for every machine.
const Functions& float_functions();

}  // namespace shardtune::kernels::few_rows
