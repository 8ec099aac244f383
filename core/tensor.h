// Tensor owns memory, TensorView points into somebody's. Both are dense and row-major (last index
// fastest). Copying a Tensor copies bytes only through clone(); passing one means moving it.
// Memory comes from a BufferPool, which keeps freed buffers for the next micro-batch: after the
// probe on the longest micro-batch a step allocates nothing from the system.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>

#include "core/checked.h"
#include "core/dtype.h"
#include "core/error.h"

namespace shardtune {

/// Extents of up to four dimensions. A default-constructed Shape is a scalar (ndim 0, numel 1).
class Shape {
 public:
  static constexpr int kMaxDims = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> extents)
      : Shape(std::span<const int64_t>(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const int64_t> extents);

  int ndim() const { return ndim_; }
  int64_t operator[](int i) const { return extents_[i]; }
  int64_t numel() const { return numel_; }
  std::span<const int64_t> extents() const { return {extents_.data(), static_cast<size_t>(ndim_)}; }
  bool operator==(const Shape& other) const;
  std::string to_string() const;  // "[2048, 576]"

 private:
  std::array<int64_t, kMaxDims> extents_{};
  int ndim_ = 0;
  int64_t numel_ = 1;
};

/// Pointer, dtype and shape; does not own. Const-correctness is the caller's: `data<const
/// float>()`.
class TensorView {
 public:
  TensorView() = default;
  TensorView(void* data, DType dtype, Shape shape) : data_(data), dtype_(dtype), shape_(shape) {}
  TensorView(const void* data, DType dtype, Shape shape)
      : data_(const_cast<void*>(data)), dtype_(dtype), shape_(shape) {}

  bool empty() const { return data_ == nullptr; }
  void* raw() const { return data_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t num_bytes() const { return shape_.numel() * size_of(dtype_); }

  /// Typed pointer; ArgumentError when T is not the element type (const T allowed).
  template <typename T>
  T* data() const {
    if (DTypeOf<std::remove_const_t<T>>::value != dtype_)
      throw_dtype(DTypeOf<std::remove_const_t<T>>::value);
    return static_cast<T*>(data_);
  }
  template <typename T>
  std::span<T> span() const {
    return {data<T>(), static_cast<size_t>(numel())};
  }
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(data_), static_cast<size_t>(num_bytes())};
  }

  /// The same elements under another shape; ArgumentError when the counts differ.
  TensorView reshaped(Shape shape) const;
  /// Rows [begin, end) of the first dimension.
  TensorView rows(int64_t begin, int64_t end) const;

 private:
  [[noreturn]] void throw_dtype(DType wanted) const;

  void* data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  Shape shape_;
};

/// Keeps freed buffers by size and hands them out again. Thread safe. Buffers are 64-byte aligned,
/// uninitialised. A request that no kept buffer of its size serves gives others back to the system
/// first, where the total would pass the most ever in use and more than kAlwaysKeptBytes are kept:
/// memory does not grow with the number of batch lengths met. One pool per process lives behind
/// BufferPool::process(): an allocator is the one resource that every Tensor must share, as malloc
/// is.
class BufferPool {
 public:
  /// Scratch of products comes in many sizes; fresh pages would cost more than what is done in
  /// them.
  static constexpr int64_t kAlwaysKeptBytes = 32 << 20;

  static BufferPool& process();

  void* allocate(int64_t num_bytes);
  void release(void* pointer, int64_t num_bytes) noexcept;
  /// Gives every kept buffer back to the system.
  void trim() noexcept;

  int64_t bytes_in_use() const;
  int64_t peak_bytes_in_use() const;
  int64_t bytes_kept() const;
  /// The most bytes of pages that buffers covered at once, in use or kept: of a buffer, the pages
  /// that a caller asked for so far. What is rounded up past them is never touched.
  int64_t peak_resident_bytes() const;
  int64_t resident_bytes() const;  // of now

  BufferPool();
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Owns a buffer of the process pool. Move-only. Contents start uninitialised.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Shape shape, DType dtype);
  static Tensor zeros(Shape shape, DType dtype);
  static Tensor from(std::span<const float> values, Shape shape);
  ~Tensor();
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(Tensor&& other) noexcept;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  Tensor clone() const;
  bool empty() const { return view_.empty(); }
  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  DType dtype() const { return view_.dtype(); }
  const Shape& shape() const { return view_.shape(); }
  int64_t dim(int i) const { return view_.dim(i); }
  int64_t numel() const { return view_.numel(); }
  int64_t num_bytes() const { return view_.num_bytes(); }
  template <typename T>
  T* data() const {
    return view_.data<T>();
  }
  template <typename T>
  std::span<T> span() const {
    return view_.span<T>();
  }

 private:
  TensorView view_;
};

}  // namespace shardtune
