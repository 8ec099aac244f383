#include "parallel/host_segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/checked.h"
#include "parallel/collective_errors.h"

namespace shardtune::parallel {

namespace {

/// How the other ranks of a host find the memory of its first rank.
struct Handle {
  int64_t process = 0;
  int64_t descriptor = -1;
  uint64_t identity = 0;
};

}  // namespace

HostSegment::~HostSegment() {
  for (const std::span<const std::byte> map : maps_)
    munmap(const_cast<std::byte*>(map.data()), map.size());
}

void HostSegment::open() {
  leaders_ = comm_.all_gather_value(comm_.host_leader());
  const int leader = comm_.host_leader();
  Handle own;
  run_on_all_ranks(comm_, [&] {
    if (comm_.rank() != leader)
      return;
    file_ = MemoryFile::create();
    own = {getpid(), file_.descriptor(), file_.identity()};
  });
  const Handle handle = comm_.all_gather_value(own)[static_cast<size_t>(leader)];
  run_on_all_ranks(comm_, [&] {
    if (comm_.rank() == leader)
      return;
    file_ =
        MemoryFile::open(static_cast<pid_t>(handle.process), static_cast<int>(handle.descriptor));
    if (file_.identity() != handle.identity)
      throw CommError(fmt::format(
          "base shared on {}: expected the memory of rank {}, found that of another process with "
          "the number {}. Start all ranks of a host in one PID namespace.",
          comm_.host_name(), leader, handle.process));
  });
}

HostSegment::Piece HostSegment::grow(std::string_view what, int64_t num_bytes) {
  if (leaders_.empty())
    open();
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t size = checked_mul(ceil_div(num_bytes, page), page);
  const Piece piece{num_bytes_, {}};
  if (size == 0)
    return piece;
  // In turn, so that a host with several memories has some in each.
  const auto turn = static_cast<int64_t>(maps_.size()) % comm_.local_size();
  run_on_all_ranks(comm_, [&] {
    if (comm_.local_rank() == turn)
      reserve(what, size);
  });
  run_on_all_ranks(comm_, [&] { maps_.push_back(map(what, size)); });
  num_bytes_ = checked_add(num_bytes_, size);
  return {piece.offset, maps_.back().first(static_cast<size_t>(num_bytes))};
}

void HostSegment::reserve(std::string_view what, int64_t num_bytes) const {
  int error = EINTR;
  while (error == EINTR)
    error = posix_fallocate(file_.descriptor(), num_bytes_, num_bytes);
  if (error != 0)
    throw OutOfMemoryError(fmt::format(
        "base shared on {}: {}: expected {} bytes of memory beside {} reserved, found none: {}. "
        "Use a smaller base (quantization.method: nf4) or 'zero_optimization: {{stage: 3}}'.",
        comm_.host_name(), what, num_bytes, num_bytes_, std::strerror(error)));
}

// With all pages, so that a step meets no page faults and what is resident is what is used.
std::span<const std::byte> HostSegment::map(std::string_view what, int64_t num_bytes) const {
  void* address = mmap(nullptr, static_cast<size_t>(num_bytes), PROT_READ,
                       MAP_SHARED | MAP_POPULATE, file_.descriptor(), num_bytes_);
  if (address == MAP_FAILED)
    throw OutOfMemoryError(fmt::format(
        "base shared on {}: {}: expected room for {} bytes in the address space, found none: {}. "
        "Raise the limit (ulimit -v).",
        comm_.host_name(), what, num_bytes, std::strerror(errno)));
  return {static_cast<const std::byte*>(address), static_cast<size_t>(num_bytes)};
}

void HostSegment::write(int64_t offset, std::span<const std::byte> bytes) {
  SHARDTUNE_ASSERT(offset >= 0 && static_cast<int64_t>(bytes.size()) <= num_bytes_ - offset);
  while (!bytes.empty()) {
    const ssize_t count = pwrite(file_.descriptor(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno != EINTR)
      throw DeviceError(fmt::format(
          "base shared on {}: expected to write {} bytes at {}, found: {}. Start again; if it "
          "comes back, write 'share_base_per_host: false'.",
          comm_.host_name(), bytes.size(), offset, std::strerror(errno)));
    if (count > 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
      offset += count;
    }
  }
}

}  // namespace shardtune::parallel
