// Memory for direct I/O: aligned to kIoAlignment, zeroed, its own to the end. Pages of its own, as
// core's buffer pool has them: large blocks given to free() would raise glibc's thresholds for mmap
// and trimming, and the heap would keep what others free.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <utility>

#include "core/checked.h"
#include "io/async_io.h"

namespace shardtune::io {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// Length rounded up to kIoAlignment. std::bad_alloc: the system has no such memory.
  explicit AlignedBuffer(int64_t num_bytes)
      : size_(static_cast<size_t>(round_up(num_bytes, kIoAlignment))) {
    if (size_ == 0)
      return;
    const bool is_huge = size_ >= kHugePage;
    const size_t mapped = is_huge ? size_ + kHugePage : size_;
    void* const memory =
        ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
      throw std::bad_alloc();
    data_ = static_cast<std::byte*>(memory);
    if (is_huge)
      align_to_huge_pages();
  }
  ~AlignedBuffer() {
    if (data_ != nullptr)
      ::munmap(data_, size_);
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;

  /// Cuts the mapping, a huge page longer than size_, to one that begins at a huge page.
  void align_to_huge_pages() noexcept {
    const size_t past = reinterpret_cast<uintptr_t>(data_) % kHugePage;
    const size_t before = past == 0 ? 0 : kHugePage - past;
    if (before > 0)
      ::munmap(data_, before);
    ::munmap(data_ + before + size_, kHugePage - before);
    data_ += before;
    // One segment of a huge page instead of 512 pages in every request, where the kernel has them.
    ::madvise(data_, size_ / kHugePage * kHugePage, MADV_HUGEPAGE);
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace shardtune::io
