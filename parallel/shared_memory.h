// A piece of memory that the ranks of one host map: anonymous memory behind a file descriptor
// (memfd), which has no name. Other processes open it through /proc/<pid>/fd, so nothing is left
// behind in /dev/shm however the ranks end, and the size of /dev/shm does not matter.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>

namespace shardtune::parallel {

class SharedMemory {
 public:
  /// New memory, all zero. CommError: the kernel has no memfd, or no memory.
  static SharedMemory create(size_t num_bytes);
  /// Memory that another process of this host made, from its descriptor. CommError: the process or
  /// the descriptor cannot be seen from here (another PID namespace), or is of another size.
  static SharedMemory open(pid_t process, int descriptor, size_t num_bytes);

  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) = delete;
  ~SharedMemory();

  std::span<std::byte> bytes() const { return {data_, num_bytes_}; }
  /// -1 after close_descriptor(). The mapping stays when the descriptor goes.
  int descriptor() const { return descriptor_; }
  void close_descriptor();

 private:
  SharedMemory(int descriptor, size_t num_bytes);

  int descriptor_ = -1;
  std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

}  // namespace shardtune::parallel
