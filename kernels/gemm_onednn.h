// Single-threaded oneDNN products on sub-blocks of row-major matrices. The only caller of oneDNN:
// gemm.cpp cuts a product into blocks that do not depend on the thread count and runs each here.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/instruction_set.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

/// Everything that selects a primitive. Strides in elements; each matrix is plain with one of its
/// strides 1.
struct ProductSpec {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_row_stride = 0, a_column_stride = 1;
  int64_t b_row_stride = 0, b_column_stride = 1;  // of op(b) [K,N]
  int64_t c_row_stride = 0;
  DType input_dtype = DType::kFloat32;  // of a and b
  DType output_dtype = DType::kFloat32;
  Accumulate accumulate = Accumulate::kNo;
  float scale = 1.0f;

  bool operator==(const ProductSpec&) const = default;
};

/// c (+)= scale * a * b on the calling thread alone. Thread safe. m, n and k at least 1.
/// Errors  DeviceError: oneDNN refuses the product
void run_product(const ProductSpec& spec, const void* a, const void* b, void* c);

/// Bounds what oneDNN may choose. Before anything else of oneDNN; once.
void limit_onednn(InstructionSet limit);

/// Bytes of scratch that one call of run_product holds.
int64_t product_scratch_bytes(const ProductSpec& spec);

}  // namespace shardtune::kernels
