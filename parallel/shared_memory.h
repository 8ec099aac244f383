// Memory that the ranks of one host map: anonymous memory behind a file descriptor (memfd), which
// has no name. Other processes open it through /proc/<pid>/fd, so nothing is left behind in
// /dev/shm however the ranks end, and the size of /dev/shm does not matter.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace shardtune::parallel {

/// The descriptor of such memory. Nobody can make it shorter, so what was reserved and is mapped
/// stays there.
class MemoryFile {
 public:
  MemoryFile() = default;
  /// New and empty. CommError: the kernel has no memfd.
  static MemoryFile create();
  /// What another process of this host made, from its descriptor. CommError: the process or the
  /// descriptor cannot be seen from here (another PID namespace).
  static MemoryFile open(pid_t process, int descriptor);

  MemoryFile(MemoryFile&& other) noexcept;
  MemoryFile& operator=(MemoryFile&& other) noexcept;
  ~MemoryFile();

  int descriptor() const { return descriptor_; }  // -1: none
  int64_t size() const;
  /// The same for every descriptor of this memory, and for no other memory of the host.
  uint64_t identity() const;

 private:
  explicit MemoryFile(int descriptor) : descriptor_(descriptor) {}

  int descriptor_ = -1;
};

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
  int descriptor() const { return file_.descriptor(); }
  void close_descriptor() { file_ = MemoryFile(); }

 private:
  SharedMemory(MemoryFile file, size_t num_bytes);

  MemoryFile file_;
  std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

}  // namespace shardtune::parallel
