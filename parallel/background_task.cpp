#include "parallel/background_task.h"

#include <utility>

#include "core/error.h"

namespace shardtune::parallel {

BackgroundTask::~BackgroundTask() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  condition_.notify_all();
  if (thread_.joinable())
    thread_.join();
}

void BackgroundTask::start(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  SHARDTUNE_ASSERT(!task_ && !error_);
  task_ = std::move(task);
  if (!thread_.joinable())
    thread_ = std::thread([this] { run(); });
  condition_.notify_all();
}

void BackgroundTask::wait() {
  std::unique_lock lock(mutex_);
  condition_.wait(lock, [this] { return !task_; });
  if (std::exception_ptr error = std::exchange(error_, nullptr))
    std::rethrow_exception(error);
}

void BackgroundTask::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    condition_.wait(lock, [this] { return task_ || stop_; });
    if (!task_)
      return;
    std::exception_ptr error;
    lock.unlock();
    try {
      task_();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    error_ = error;
    task_ = nullptr;
    condition_.notify_all();
  }
}

}  // namespace shardtune::parallel
