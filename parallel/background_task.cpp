#include "parallel/background_task.h"

#include <time.h>

#include <utility>

#include "core/error.h"

namespace shardtune::parallel {

namespace {
double thread_cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}
}  // namespace

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

bool BackgroundTask::running(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return !condition_.wait_for(lock, timeout, [this] { return !task_; });
}

void BackgroundTask::wait() {
  std::unique_lock lock(mutex_);
  condition_.wait(lock, [this] { return !task_; });
  if (std::exception_ptr error = std::exchange(error_, nullptr))
    std::rethrow_exception(error);
}

double BackgroundTask::cpu_seconds() {
  const std::lock_guard lock(mutex_);
  return cpu_seconds_;
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
    const double cpu_seconds = thread_cpu_seconds();
    lock.lock();
    cpu_seconds_ = cpu_seconds;
    error_ = error;
    task_ = nullptr;
    condition_.notify_all();
  }
}

}  // namespace shardtune::parallel
