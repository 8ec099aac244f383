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
[[noreturn]] void fail(const std::string& call) {
  throw CommError(fmt::format("shared memory: {}: {}", call, std::strerror(errno)));
}

[[noreturn]] void fail(const char* call, size_t num_bytes) {
  throw CommError(
      fmt::format("shared memory of {} bytes: {}: {}", num_bytes, call, std::strerror(errno)));
}

struct stat status_of(int descriptor) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0)
    fail("fstat");
  return status;
}
}  // namespace

MemoryFile MemoryFile::create() {
  const int descriptor = memfd_create("shardtune", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0)
    fail("memfd_create");
  MemoryFile file(descriptor);
  if (fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK) != 0)
    fail("F_SEAL_SHRINK");
  return file;
}

MemoryFile MemoryFile::open(pid_t process, int descriptor) {
  const std::string path = fmt::format("/proc/{}/fd/{}", process, descriptor);
  const int own = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (own < 0)
    fail(path);
  return MemoryFile(own);
}

MemoryFile::MemoryFile(MemoryFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {}

MemoryFile& MemoryFile::operator=(MemoryFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

MemoryFile::~MemoryFile() {
  if (descriptor_ >= 0)
    ::close(descriptor_);
}

int64_t MemoryFile::size() const { return status_of(descriptor_).st_size; }

// All memory of this kind stands in one file system of the kernel.
uint64_t MemoryFile::identity() const { return status_of(descriptor_).st_ino; }

SharedMemory SharedMemory::create(size_t num_bytes) {
  MemoryFile file = MemoryFile::create();
  if (ftruncate(file.descriptor(), static_cast<off_t>(num_bytes)) != 0)
    fail("ftruncate", num_bytes);
  return SharedMemory(std::move(file), num_bytes);
}

SharedMemory SharedMemory::open(pid_t process, int descriptor, size_t num_bytes) {
  MemoryFile file = MemoryFile::open(process, descriptor);
  const int64_t found = file.size();
  if (static_cast<size_t>(found) != num_bytes) {
    throw CommError(
        fmt::format("/proc/{}/fd/{}: expected shared memory of {} bytes, found {}; start all ranks "
                    "of a host in one PID namespace",
                    process, descriptor, num_bytes, found));
  }
  return SharedMemory(std::move(file), num_bytes);
}

SharedMemory::SharedMemory(MemoryFile file, size_t num_bytes)
    : file_(std::move(file)), num_bytes_(num_bytes) {
  void* address =
      mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.descriptor(), 0);
  if (address == MAP_FAILED)
    fail("mmap", num_bytes);
  data_ = static_cast<std::byte*>(address);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : file_(std::move(other.file_)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr)
    munmap(data_, num_bytes_);
}

}  // namespace shardtune::parallel
