// Argument checks shared by the operations of this folder, and scalar access to f32 and bf16
// elements. Not for other folders.
#pragma once

#include <string>

#include "core/tensor.h"

namespace shardtune::kernels {

[[noreturn]] inline void fail_argument(const char* op, const char* name, const TensorView& found,
                                       const std::string& expected) {
  throw ArgumentError(std::string(op) + ": " + name + ": expected " + expected + ", found " +
                      std::string(name_of(found.dtype())) + " " + found.shape().to_string() +
                      ". This is a bug of the caller; please report it.");
}

inline bool is_float(const TensorView& x) {
  return x.dtype() == DType::kFloat32 || x.dtype() == DType::kBFloat16;
}

inline void check_float(const char* op, const char* name, const TensorView& x) {
  if (!is_float(x))
    fail_argument(op, name, x, "float32 or bfloat16");
}

/// f32 or bf16 with exactly these extents.
inline void check_matrix(const char* op, const char* name, const TensorView& x, int64_t rows,
                         int64_t columns) {
  if (!is_float(x) || x.shape().ndim() != 2 || x.dim(0) != rows || x.dim(1) != columns)
    fail_argument(op, name, x,
                  "float [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
}

/// f32 with this many elements.
inline void check_float32(const char* op, const char* name, const TensorView& x, int64_t numel) {
  if (x.dtype() != DType::kFloat32 || x.numel() != numel)
    fail_argument(op, name, x, "float32 of " + std::to_string(numel) + " elements");
}

inline void check_same_dtype(const char* op, const char* name, const TensorView& x, DType dtype) {
  if (x.dtype() != dtype)
    fail_argument(op, name, x, std::string(name_of(dtype)));
}

inline float load_element(const TensorView& x, int64_t i) {
  return x.dtype() == DType::kFloat32
             ? static_cast<const float*>(x.raw())[i]
             : static_cast<float>(static_cast<const BFloat16*>(x.raw())[i]);
}

inline void store_element(const TensorView& x, int64_t i, float value) {
  if (x.dtype() == DType::kFloat32)
    static_cast<float*>(x.raw())[i] = value;
  else
    static_cast<BFloat16*>(x.raw())[i] = BFloat16(value);
}

}  // namespace shardtune::kernels
