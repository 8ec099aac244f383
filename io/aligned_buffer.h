// Memory for direct I/O: aligned to kIoAlignment, zeroed, its own to the end.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "core/checked.h"
#include "io/async_io.h"

namespace shardtune::io {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// Length rounded up to kIoAlignment.
  explicit AlignedBuffer(int64_t num_bytes)
      : size_(static_cast<size_t>(round_up(num_bytes, kIoAlignment))) {
    if (size_ == 0)
      return;
    const size_t alignment = size_ < kHugePage ? kIoAlignment : kHugePage;
    void* memory = nullptr;
    if (::posix_memalign(&memory, alignment, size_) != 0)
      throw std::bad_alloc();
    data_.reset(static_cast<std::byte*>(memory));
    // One segment of a huge page instead of 512 pages in every request, where the kernel has them.
    if (size_ >= kHugePage)
      ::madvise(memory, size_ / kHugePage * kHugePage, MADV_HUGEPAGE);
    std::memset(data_.get(), 0, size_);
  }

  std::span<std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  struct Free {
    void operator()(std::byte* pointer) const { std::free(pointer); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

}  // namespace shardtune::io
