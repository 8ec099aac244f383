// The file that offloaded bytes live in: made anew in a folder, unlinked at once (a killed run
// leaves nothing), its space taken before it is used (a full disk is met then, not later). Chooses
// how it is read and written: io_uring with O_DIRECT, or buffered on a thread where the file system
// or the kernel has no such thing; description() says which and why.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "io/async_io.h"

namespace shardtune::io {

namespace fs = std::filesystem;

enum class SwapMode { kAuto, kBuffered };

struct SwapOptions {
  fs::path folder;  // must be there
  int rank = 0;
  SwapMode mode = SwapMode::kAuto;
  /// Put between the file and its user; for tests that inject failures.
  std::function<std::unique_ptr<AsyncIo>(std::unique_ptr<AsyncIo>)> wrap;
};

struct SwapSpeed {
  double write_bytes_per_second = 0.0;
  double read_bytes_per_second = 0.0;
};

class SwapFile {
 public:
  /// Makes folder/shardtune-<unique>-rank<r>. WriteError: it cannot be made.
  explicit SwapFile(const SwapOptions& options);
  ~SwapFile();
  SwapFile(const SwapFile&) = delete;
  SwapFile& operator=(const SwapFile&) = delete;

  AsyncIo& io() { return *io_; }
  /// The name that it had; the folder is what a user can act on.
  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  bool is_direct() const { return fallback_reason_.empty(); }
  /// E.g. "io_uring, 128 requests in flight, registered buffers, O_DIRECT" or "buffered pread and
  /// pwrite on a thread, because ...".
  std::string description() const;
  /// Empty where nothing is missing.
  const std::string& fallback_reason() const { return fallback_reason_; }

  /// Takes space up to `bytes` from the start. WriteError with needed and free bytes.
  void reserve(int64_t bytes);
  int64_t reserved_bytes() const { return reserved_; }

  /// Memory that measure() takes, at most.
  static constexpr int64_t kMeasureBytes = 32 << 20;
  /// Writes and reads back at most `bytes`, for at most about a second each way, and returns the
  /// speeds. Overwrites the start of the file: call it before anything is stored.
  SwapSpeed measure(int64_t bytes);

 private:
  void choose_io(const SwapOptions& options);

  std::string path_;
  int fd_ = -1;
  bool linked_ = true;
  int64_t reserved_ = 0;
  std::string fallback_reason_;
  std::unique_ptr<AsyncIo> io_;
};

}  // namespace shardtune::io
