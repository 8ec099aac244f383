// Reads and writes of one open file that go on while the caller computes: requests are handed over,
// results are taken back in the order in which they finish. Two forms: io_uring (the kernel works
// through the queue, O_DIRECT, registered buffers) and a thread with pread and pwrite for file
// systems and kernels that have neither. One thread at a time uses an AsyncIo.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace shardtune::io {

/// What direct I/O wants of offsets, lengths and addresses.
inline constexpr int64_t kIoAlignment = 4096;

enum class IoKind { kRead, kWrite };

/// `bytes` belongs to the caller and must stay until the result was taken.
struct IoRequest {
  IoKind kind = IoKind::kRead;
  int64_t offset = 0;
  std::span<std::byte> bytes;
  uint64_t tag = 0;
};

/// Bytes moved, possibly fewer than asked for (0: the file ended), or -errno.
struct IoResult {
  uint64_t tag = 0;
  int64_t count = 0;
};

class AsyncIo {
 public:
  virtual ~AsyncIo() = default;  // waits for everything under way

  /// Tells which memory requests will use; replaces the set of before. Nothing may be under way.
  /// A refusal (memory that may not be locked) costs speed alone and shows in description().
  virtual void register_buffers(std::span<const std::span<std::byte>> buffers) = 0;
  /// Returns at once; requests beyond the queue's depth wait in order.
  virtual void submit(std::span<const IoRequest> requests) = 0;
  /// Waits for the next result. ArgumentError: nothing is under way.
  virtual IoResult wait_one() = 0;
  /// The next result if one is there.
  virtual std::optional<IoResult> try_one() = 0;
  /// For the log, e.g. "io_uring, 128 requests in flight".
  virtual std::string description() const = 0;
};

/// Null where the kernel refuses io_uring (`reason` says why): not built in, or not allowed in this
/// container.
std::unique_ptr<AsyncIo> make_uring_io(int fd, std::string& reason);
std::unique_ptr<AsyncIo> make_thread_io(int fd);

}  // namespace shardtune::io
