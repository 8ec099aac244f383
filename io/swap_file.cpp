#include "io/swap_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <utility>

#include "core/error.h"
#include "io/aligned_buffer.h"
#include "io/file.h"

namespace shardtune::io {
namespace {

constexpr int64_t kRequestBytes = 1 << 20;

/// Why direct I/O is not possible on this descriptor; empty when it is. Leaves O_DIRECT set then.
std::string try_direct(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_DIRECT) != 0)
    return std::string("the file system has no O_DIRECT (") + std::strerror(errno) + ")";
  // Some file systems take the flag and refuse the transfer, e.g. where sectors are larger.
  const AlignedBuffer block(kIoAlignment);
  const ssize_t written = ::pwrite(fd, block.bytes().data(), block.bytes().size(), kIoAlignment);
  const int error = errno;
  if (written == kIoAlignment || (written < 0 && error == ENOSPC))
    return "";
  ::fcntl(fd, F_SETFL, flags);
  return std::string("the file system refuses O_DIRECT in units of 4,096 bytes (") +
         (written < 0 ? std::strerror(error) : "short write") + ")";
}

void clear_direct(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0)
    ::fcntl(fd, F_SETFL, flags & ~O_DIRECT);
}

struct Transfer {
  int64_t bytes = 0;
  double seconds = 0.0;
};

[[noreturn]] void throw_measuring(const std::string& path, IoKind kind, const IoResult& result) {
  const std::string what =
      path + ": measuring its speed: " + (kind == IoKind::kRead ? "reading" : "writing") +
      " failed at byte " + std::to_string(result.tag) + ": " +
      (result.count < 0 ? std::strerror(static_cast<int>(-result.count)) : "short transfer") +
      ". Check the device (dmesg), or choose another nvme_path.";
  if (kind == IoKind::kRead)
    throw MissingInputError(what);
  throw WriteError(what);
}

/// Moves up to `bytes` from the start of the file, as many as can be begun in a second.
Transfer transfer(AsyncIo& io, IoKind kind, int64_t bytes, std::span<std::byte> buffer,
                  const std::string& path) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto in_time = [&] { return Clock::now() - start < std::chrono::seconds(1); };
  const auto num_slots = static_cast<int64_t>(buffer.size()) / kRequestBytes;
  int64_t submitted = 0;
  int64_t in_flight = 0;
  std::optional<IoResult> failed;
  while (true) {
    while (!failed && submitted < bytes && in_flight < num_slots && in_time()) {
      const int64_t slot = submitted / kRequestBytes % num_slots;
      const int64_t length = std::min(kRequestBytes, bytes - submitted);
      const IoRequest request{
          kind, submitted,
          buffer.subspan(static_cast<size_t>(slot * kRequestBytes), static_cast<size_t>(length)),
          static_cast<uint64_t>(submitted)};
      io.submit({&request, 1});
      submitted += length;
      ++in_flight;
    }
    if (in_flight == 0)
      break;
    const IoResult result = io.wait_one();
    --in_flight;
    if (result.count != std::min(kRequestBytes, bytes - static_cast<int64_t>(result.tag)))
      failed = result;
  }
  if (failed)
    throw_measuring(path, kind, *failed);
  return {submitted, std::chrono::duration<double>(Clock::now() - start).count()};
}

}  // namespace

SwapFile::SwapFile(const SwapOptions& options) {
  const std::string suffix = "-rank" + std::to_string(options.rank);
  std::string name = (options.folder / ("shardtune-XXXXXX" + suffix)).string();
  fd_ = ::mkostemps(name.data(), static_cast<int>(suffix.size()), O_CLOEXEC);
  if (fd_ < 0) {
    throw WriteError(options.folder.string() +
                     ": cannot make a swap file there: " + std::strerror(errno) +
                     ". Let nvme_path name a folder that this user may write to.");
  }
  path_ = name;
  // The name goes at once, so that a kill leaves nothing behind.
  linked_ = ::unlink(path_.c_str()) != 0;
  try {
    choose_io(options);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

SwapFile::~SwapFile() {
  io_.reset();
  ::close(fd_);
  if (linked_)
    ::unlink(path_.c_str());
}

void SwapFile::choose_io(const SwapOptions& options) {
  if (options.mode == SwapMode::kBuffered) {
    fallback_reason_ = "it was asked for";
  } else if (fallback_reason_ = try_direct(fd_); fallback_reason_.empty()) {
    io_ = make_uring_io(fd_, fallback_reason_);
    if (io_ == nullptr)
      clear_direct(fd_);
  }
  if (io_ == nullptr)
    io_ = make_thread_io(fd_);
  if (options.wrap)
    io_ = options.wrap(std::move(io_));
}

std::string SwapFile::description() const {
  return io_->description() +
         (fallback_reason_.empty() ? ", O_DIRECT" : ", because " + fallback_reason_);
}

void SwapFile::reserve(int64_t bytes) {
  if (bytes <= reserved_)
    return;
  int error = 0;
  do {
    error = ::posix_fallocate(fd_, reserved_, bytes - reserved_);
  } while (error == EINTR);
  if (error != 0) {
    require_free_space(fs::path(path_).parent_path(), bytes - reserved_, path_ + ": swap file");
    throw WriteError(path_ + ": cannot take " + std::to_string(bytes - reserved_) +
                     " more bytes for the swap file: " + std::strerror(error) +
                     ". Free space there or choose another nvme_path.");
  }
  reserved_ = bytes;
}

SwapSpeed SwapFile::measure(int64_t bytes) {
  bytes = round_up(bytes, kIoAlignment);
  reserve(bytes);
  const AlignedBuffer buffer(std::min(round_up(bytes, kRequestBytes), kMeasureBytes));
  // Other bytes than zeros, which some devices do not store.
  for (size_t i = 0; i < buffer.bytes().size(); ++i)
    buffer.bytes()[i] = static_cast<std::byte>((i * 2654435761u) >> 13);
  const std::span<std::byte> all[] = {buffer.bytes()};
  io_->register_buffers(all);
  const Transfer written = transfer(*io_, IoKind::kWrite, bytes, buffer.bytes(), path_);
  const Transfer read = transfer(*io_, IoKind::kRead, written.bytes, buffer.bytes(), path_);
  io_->register_buffers({});
  return {static_cast<double>(written.bytes) / written.seconds,
          static_cast<double>(read.bytes) / read.seconds};
}

}  // namespace shardtune::io
