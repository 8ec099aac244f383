// Bytes that every host holds once for all of its ranks: memory without a name (MemoryFile) that
// grows piece by piece. Each rank maps the pieces for reading only, so that a stray write faults;
// write() goes through the descriptor. The kernel reserves a piece before anybody uses it, so
// memory that cannot be had is an error of grow() and no fault later. Nothing of it needs the
// transport of the ranks (SHARDTUNE_TRANSPORT): one PID namespace a host is enough.
//
// A piece is mapped whole by every rank, or each rank has a part of it: then bring() maps what the
// caller wants and let_go() gives the pages back, so that they count as this rank's resident memory
// only meanwhile. The bytes stay where they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/shared_memory.h"

namespace shardtune::parallel {

class HostSegment {
 public:
  /// What the memory is for, in errors.
  enum class Use { kSharedBase, kShards };
  /// A piece of the segment, at a multiple of the page size.
  struct Piece {
    int64_t offset = 0;
    std::span<const std::byte> bytes;
  };

  explicit HostSegment(Communicator& comm, Use use = Use::kSharedBase) : comm_(comm), use_(use) {}
  ~HostSegment();
  HostSegment(const HostSegment&) = delete;
  HostSegment& operator=(const HostSegment&) = delete;

  /// Adds zeros on every host; `what` they are for stands in errors. Collective.
  /// Errors  on every rank, naming the first that has one: OutOfMemoryError; CommError: ranks of a
  ///         host cannot see each other's memory
  Piece grow(std::string_view what, int64_t num_bytes);
  /// The same for a piece of which this rank reserves bytes [begin, end); the ranks of a host
  /// reserve all of it. Nothing is mapped before bring().
  Piece grow_in_parts(std::string_view what, int64_t num_bytes, int64_t begin, int64_t end);
  /// Maps whole pages of a piece before they are used, or gives them back. Any thread.
  static void bring(std::span<const std::byte> pages);
  static void let_go(std::span<const std::byte> pages) noexcept;
  /// Lets this rank write to whole pages of a piece.
  std::span<std::byte> make_writable(std::span<const std::byte> pages) const;
  /// Replaces bytes from `offset` of the segment on. Local: the ranks of a host see it, and must
  /// not read meanwhile. Errors  DeviceError
  void write(int64_t offset, std::span<const std::byte> bytes);
  /// Copies bytes from `offset` on without mapping them. Any thread. Errors  DeviceError
  void read(int64_t offset, std::span<std::byte> bytes) const;

  /// [rank]: the first rank of its host. After a grow().
  std::span<const int> leaders() const { return leaders_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  void open();
  void reserve(std::string_view what, int64_t begin, int64_t num_bytes) const;
  std::span<const std::byte> map(std::string_view what, int64_t num_bytes, int flags) const;
  Piece append(std::string_view what, int64_t num_bytes, int flags);
  std::string where() const;

  Communicator& comm_;
  Use use_;
  MemoryFile file_;
  std::vector<int> leaders_;
  std::vector<std::span<const std::byte>> maps_;
  int64_t num_bytes_ = 0;
};

}  // namespace shardtune::parallel
