// Bytes that every host holds once for all of its ranks: memory without a name (MemoryFile) that
// grows piece by piece. Each rank maps the pieces for reading only, so that a stray write faults;
// write() goes through the descriptor. The kernel reserves a piece before anybody uses it, so
// memory that cannot be had is an error of grow() and no fault later. Nothing of it needs the
// transport of the ranks (SHARDTUNE_TRANSPORT): one PID namespace a host is enough.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/shared_memory.h"

namespace shardtune::parallel {

class HostSegment {
 public:
  /// A piece of the segment, at a multiple of the page size.
  struct Piece {
    int64_t offset = 0;
    std::span<const std::byte> bytes;
  };

  explicit HostSegment(Communicator& comm) : comm_(comm) {}
  ~HostSegment();
  HostSegment(const HostSegment&) = delete;
  HostSegment& operator=(const HostSegment&) = delete;

  /// Adds zeros on every host; `what` they are for stands in errors. Collective.
  /// Errors  on every rank, naming the first that has one: OutOfMemoryError; CommError: ranks of a
  ///         host cannot see each other's memory
  Piece grow(std::string_view what, int64_t num_bytes);
  /// Replaces bytes from `offset` of the segment on. Local: the ranks of a host see it, and must
  /// not read meanwhile. Errors  DeviceError
  void write(int64_t offset, std::span<const std::byte> bytes);

  /// [rank]: the first rank of its host. After a grow().
  std::span<const int> leaders() const { return leaders_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  void open();
  void reserve(std::string_view what, int64_t num_bytes) const;
  std::span<const std::byte> map(std::string_view what, int64_t num_bytes) const;

  Communicator& comm_;
  MemoryFile file_;
  std::vector<int> leaders_;
  std::vector<std::span<const std::byte>> maps_;
  int64_t num_bytes_ = 0;
};

}  // namespace shardtune::parallel
