// AsyncIo over io_uring; the only file that includes liburing.
#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <vector>

#include "core/error.h"
#include "io/async_io.h"

namespace shardtune::io {
namespace {

/// Of 1 MiB each: what a unit of a large model and the next ones ask for, whose requests are handed
/// over only when their reader comes by.
constexpr unsigned kDepth = 512;
/// The kernel takes at most 1 GiB per registered buffer.
constexpr size_t kMaxRegistered = size_t{512} << 20;

class UringIo : public AsyncIo {
 public:
  UringIo(int fd, const io_uring& ring) : fd_(fd), ring_(ring) {}

  ~UringIo() override {
    while (num_in_flight_ > 0 || !waiting_.empty()) {
      try {
        wait_one();
      } catch (const Error&) {
        break;
      }
    }
    io_uring_queue_exit(&ring_);
  }

  void register_buffers(std::span<const std::span<std::byte>> buffers) override {
    SHARDTUNE_ASSERT(num_in_flight_ == 0);
    if (!pieces_.empty())
      io_uring_unregister_buffers(&ring_);
    pieces_.clear();
    for (std::span<std::byte> buffer : buffers) {
      for (; !buffer.empty(); buffer = buffer.subspan(std::min(buffer.size(), kMaxRegistered)))
        pieces_.push_back({buffer.data(), std::min(buffer.size(), kMaxRegistered)});
    }
    if (pieces_.empty())
      return;
    const int result =
        io_uring_register_buffers(&ring_, pieces_.data(), static_cast<unsigned>(pieces_.size()));
    refusal_ = result < 0 ? std::strerror(-result) : "";
    if (result < 0)
      pieces_.clear();
  }

  void submit(std::span<const IoRequest> requests) override {
    waiting_.insert(waiting_.end(), requests.begin(), requests.end());
    pump();
  }

  IoResult wait_one() override {
    pump();
    if (num_in_flight_ == 0)
      throw ArgumentError("async I/O: waited for a result, but nothing is under way");
    io_uring_cqe* entry = nullptr;
    int result = 0;
    do {
      result = io_uring_wait_cqe(&ring_, &entry);
    } while (result == -EINTR);
    if (result < 0)
      throw DeviceError(std::string("io_uring: waiting failed: ") + std::strerror(-result));
    return take(entry);
  }

  std::optional<IoResult> try_one() override {
    pump();
    io_uring_cqe* entry = nullptr;
    if (io_uring_peek_cqe(&ring_, &entry) != 0 || entry == nullptr)
      return std::nullopt;
    return take(entry);
  }

  std::string description() const override {
    return "io_uring, " + std::to_string(kDepth) + " requests in flight, " +
           (refusal_.empty() ? "registered buffers"
                             : "buffers not registered (" + refusal_ +
                                   "; a larger limit of locked memory, ulimit -l, allows it)");
  }

 private:
  IoResult take(io_uring_cqe* entry) {
    const IoResult done{entry->user_data, entry->res};
    io_uring_cqe_seen(&ring_, entry);
    --num_in_flight_;
    pump();
    return done;
  }

  /// Moves requests into the ring up to its depth and tells the kernel.
  void pump() {
    bool any = false;
    while (!waiting_.empty() && num_in_flight_ < kDepth) {
      io_uring_sqe* entry = io_uring_get_sqe(&ring_);
      if (entry == nullptr)
        break;
      prepare(entry, waiting_.front());
      waiting_.pop_front();
      ++num_in_flight_;
      any = true;
    }
    if (!any)
      return;
    int result = 0;
    do {
      result = io_uring_submit(&ring_);
    } while (result == -EINTR || result == -EAGAIN);
    if (result < 0)
      throw DeviceError(std::string("io_uring: submitting failed: ") + std::strerror(-result));
  }

  void prepare(io_uring_sqe* entry, const IoRequest& request) const {
    const auto length = static_cast<unsigned>(request.bytes.size());
    const auto offset = static_cast<uint64_t>(request.offset);
    const int piece = piece_of(request.bytes);
    std::byte* data = request.bytes.data();
    if (request.kind == IoKind::kRead && piece >= 0)
      io_uring_prep_read_fixed(entry, fd_, data, length, offset, piece);
    else if (request.kind == IoKind::kRead)
      io_uring_prep_read(entry, fd_, data, length, offset);
    else if (piece >= 0)
      io_uring_prep_write_fixed(entry, fd_, data, length, offset, piece);
    else
      io_uring_prep_write(entry, fd_, data, length, offset);
    entry->user_data = request.tag;
  }

  /// The registered piece that holds the bytes, or -1.
  int piece_of(std::span<const std::byte> bytes) const {
    for (size_t i = 0; i < pieces_.size(); ++i) {
      const auto* base = static_cast<const std::byte*>(pieces_[i].iov_base);
      if (bytes.data() >= base && bytes.data() + bytes.size() <= base + pieces_[i].iov_len)
        return static_cast<int>(i);
    }
    return -1;
  }

  int fd_;
  io_uring ring_;
  std::vector<iovec> pieces_;
  std::string refusal_;
  std::deque<IoRequest> waiting_;
  unsigned num_in_flight_ = 0;
};

}  // namespace

std::unique_ptr<AsyncIo> make_uring_io(int fd, std::string& reason) {
  io_uring ring{};
  const int result = io_uring_queue_init(kDepth, &ring, 0);
  if (result < 0) {
    reason = std::string("io_uring: ") + std::strerror(-result);
    return nullptr;
  }
  return std::make_unique<UringIo>(fd, ring);
}

}  // namespace shardtune::io
