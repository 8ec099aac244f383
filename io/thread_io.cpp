// AsyncIo on one thread that works through the requests in order with pread and pwrite.
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "core/error.h"
#include "io/async_io.h"

namespace shardtune::io {
namespace {

class ThreadIo : public AsyncIo {
 public:
  explicit ThreadIo(int fd) : fd_(fd), thread_([this] { work(); }) {}

  ~ThreadIo() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void register_buffers(std::span<const std::span<std::byte>> buffers) override {}

  void submit(std::span<const IoRequest> requests) override {
    {
      const std::lock_guard lock(mutex_);
      waiting_.insert(waiting_.end(), requests.begin(), requests.end());
      num_under_way_ += requests.size();
    }
    changed_.notify_all();
  }

  IoResult wait_one() override {
    std::unique_lock lock(mutex_);
    if (num_under_way_ == 0)
      throw ArgumentError("async I/O: waited for a result, but nothing is under way");
    changed_.wait(lock, [&] { return !finished_.empty(); });
    return take();
  }

  std::optional<IoResult> try_one() override {
    const std::lock_guard lock(mutex_);
    return finished_.empty() ? std::nullopt : std::optional(take());
  }

  std::string description() const override { return "buffered pread and pwrite on a thread"; }

 private:
  /// Under the lock.
  IoResult take() {
    const IoResult result = finished_.front();
    finished_.pop_front();
    --num_under_way_;
    return result;
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return ending_ || !waiting_.empty(); });
      if (waiting_.empty())
        return;
      const IoRequest request = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      const int64_t count = run(request);
      lock.lock();
      finished_.push_back({request.tag, count});
      changed_.notify_all();
    }
  }

  int64_t run(const IoRequest& request) const {
    const ssize_t count =
        request.kind == IoKind::kRead
            ? ::pread(fd_, request.bytes.data(), request.bytes.size(), request.offset)
            : ::pwrite(fd_, request.bytes.data(), request.bytes.size(), request.offset);
    return count < 0 ? -errno : count;
  }

  int fd_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<IoRequest> waiting_;
  std::deque<IoResult> finished_;
  size_t num_under_way_ = 0;
  bool ending_ = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace

std::unique_ptr<AsyncIo> make_thread_io(int fd) { return std::make_unique<ThreadIo>(fd); }

}  // namespace shardtune::io
