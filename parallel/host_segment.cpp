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
          "{}: expected the memory of rank {}, found that of another process with the number {}. "
          "Start all ranks of a host in one PID namespace.",
          where(), leader, handle.process));
  });
}

std::string HostSegment::where() const {
  return (use_ == Use::kSharedBase ? "base shared on " : "shards of stage 3 on ") +
         comm_.host_name();
}

HostSegment::Piece HostSegment::grow(std::string_view what, int64_t num_bytes) {
  if (leaders_.empty())
    open();
  // In turn, so that a host with several memories has some in each.
  const auto turn = static_cast<int64_t>(maps_.size()) % comm_.local_size();
  run_on_all_ranks(comm_, [&] {
    if (comm_.local_rank() == turn)
      reserve(what, 0, num_bytes);
  });
  // With all pages, so that a step meets no page faults and what is resident is what is used.
  return append(what, num_bytes, MAP_POPULATE);
}

HostSegment::Piece HostSegment::grow_in_parts(std::string_view what, int64_t num_bytes,
                                              int64_t begin, int64_t end) {
  if (leaders_.empty())
    open();
  run_on_all_ranks(comm_, [&] { reserve(what, begin, end - begin); });
  return append(what, num_bytes, 0);
}

HostSegment::Piece HostSegment::append(std::string_view what, int64_t num_bytes, int flags) {
  const Piece piece{num_bytes_, {}};
  const int64_t size = round_up(num_bytes, sysconf(_SC_PAGESIZE));
  if (size == 0)
    return piece;
  run_on_all_ranks(comm_, [&] { maps_.push_back(map(what, size, flags)); });
  num_bytes_ = checked_add(num_bytes_, size);
  return {piece.offset, maps_.back().first(static_cast<size_t>(num_bytes))};
}

// Whole pages: the memory is as large as the pages of its last piece.
void HostSegment::reserve(std::string_view what, int64_t begin, int64_t num_bytes) const {
  if (num_bytes == 0)
    return;
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t first = begin / page * page;
  const int64_t size = round_up(begin + num_bytes, page) - first;
  int error = EINTR;
  while (error == EINTR)
    error = posix_fallocate(file_.descriptor(), checked_add(num_bytes_, first), size);
  if (error != 0)
    throw OutOfMemoryError(fmt::format(
        "{}: {}: expected {} bytes of memory beside {} reserved, found none: {}. Use a smaller "
        "base (quantization.method: nf4) or {}.",
        where(), what, size, num_bytes_, std::strerror(error),
        use_ == Use::kSharedBase ? "'zero_optimization: {stage: 3}'"
                                 : "'offload_param: {device: nvme}'"));
}

std::span<const std::byte> HostSegment::map(std::string_view what, int64_t num_bytes,
                                            int flags) const {
  void* address = mmap(nullptr, static_cast<size_t>(num_bytes), PROT_READ, MAP_SHARED | flags,
                       file_.descriptor(), num_bytes_);
  if (address == MAP_FAILED)
    throw OutOfMemoryError(fmt::format(
        "{}: {}: expected room for {} bytes in the address space, found none: {}. Raise the limit "
        "(ulimit -v).",
        where(), what, num_bytes, std::strerror(errno)));
  return {static_cast<const std::byte*>(address), static_cast<size_t>(num_bytes)};
}

// A read of each page maps it, and some after it at the same cost: the memory is there already.
void HostSegment::bring(std::span<const std::byte> pages) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t at = 0; at < pages.size(); at += page)
    static_cast<void>(*static_cast<const volatile std::byte*>(pages.data() + at));
}

// Of shared memory this takes the pages out of this process only. Where it fails they stay mapped.
void HostSegment::let_go(std::span<const std::byte> pages) noexcept {
  if (!pages.empty())
    madvise(const_cast<std::byte*>(pages.data()), pages.size(), MADV_DONTNEED);
}

std::span<std::byte> HostSegment::make_writable(std::span<const std::byte> pages) const {
  const std::span<std::byte> result{const_cast<std::byte*>(pages.data()), pages.size()};
  if (!pages.empty() && mprotect(result.data(), result.size(), PROT_READ | PROT_WRITE) != 0)
    throw OutOfMemoryError(
        fmt::format("{}: expected to make {} bytes writable, found: {}. Raise "
                    "vm.max_map_count.",
                    where(), pages.size(), std::strerror(errno)));
  return result;
}

void HostSegment::write(int64_t offset, std::span<const std::byte> bytes) {
  SHARDTUNE_ASSERT(offset >= 0 && static_cast<int64_t>(bytes.size()) <= num_bytes_ - offset);
  while (!bytes.empty()) {
    const ssize_t count = pwrite(file_.descriptor(), bytes.data(), bytes.size(), offset);
    if (count < 0 && errno != EINTR)
      throw DeviceError(fmt::format(
          "{}: expected to write {} bytes at {}, found: {}. Start again; if it comes back, {}.",
          where(), bytes.size(), offset, std::strerror(errno),
          use_ == Use::kSharedBase ? "write 'share_base_per_host: false'"
                                   : "set SHARDTUNE_TRANSPORT=mpi"));
    if (count > 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
      offset += count;
    }
  }
}

void HostSegment::read(int64_t offset, std::span<std::byte> bytes) const {
  SHARDTUNE_ASSERT(offset >= 0 && static_cast<int64_t>(bytes.size()) <= num_bytes_ - offset);
  while (!bytes.empty()) {
    const ssize_t count = pread(file_.descriptor(), bytes.data(), bytes.size(), offset);
    if (count == 0 || (count < 0 && errno != EINTR))
      throw DeviceError(fmt::format("{}: expected {} bytes at {}, found: {}. Start again.", where(),
                                    bytes.size(), offset,
                                    count == 0 ? "the end" : std::strerror(errno)));
    if (count > 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
      offset += count;
    }
  }
}

}  // namespace shardtune::parallel
