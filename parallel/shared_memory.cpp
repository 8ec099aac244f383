#include "parallel/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace shardtune::parallel {

namespace {
[[noreturn]] void fail(const char* call, size_t num_bytes) {
  throw CommError(
      fmt::format("shared memory of {} bytes: {}: {}", num_bytes, call, std::strerror(errno)));
}
}  // namespace

SharedMemory SharedMemory::create(size_t num_bytes) {
  const int descriptor = memfd_create("shardtune", MFD_CLOEXEC);
  if (descriptor < 0)
    fail("memfd_create", num_bytes);
  if (ftruncate(descriptor, static_cast<off_t>(num_bytes)) != 0) {
    const int error = errno;
    ::close(descriptor);
    errno = error;
    fail("ftruncate", num_bytes);
  }
  return SharedMemory(descriptor, num_bytes);
}

SharedMemory SharedMemory::open(pid_t process, int descriptor, size_t num_bytes) {
  const std::string path = fmt::format("/proc/{}/fd/{}", process, descriptor);
  const int own = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (own < 0)
    fail(path.c_str(), num_bytes);
  struct stat status {};
  if (fstat(own, &status) != 0 || static_cast<size_t>(status.st_size) != num_bytes) {
    ::close(own);
    throw CommError(
        fmt::format("{}: expected shared memory of {} bytes, found {}; start all ranks "
                    "of a host in one PID namespace",
                    path, num_bytes, status.st_size));
  }
  return SharedMemory(own, num_bytes);
}

SharedMemory::SharedMemory(int descriptor, size_t num_bytes)
    : descriptor_(descriptor), num_bytes_(num_bytes) {
  void* address = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) {
    const int error = errno;
    close_descriptor();
    errno = error;
    fail("mmap", num_bytes);
  }
  data_ = static_cast<std::byte*>(address);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr)
    munmap(data_, num_bytes_);
  close_descriptor();
}

void SharedMemory::close_descriptor() {
  if (descriptor_ >= 0)
    ::close(descriptor_);
  descriptor_ = -1;
}

}  // namespace shardtune::parallel
