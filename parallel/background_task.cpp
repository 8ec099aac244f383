#include "parallel/background_task.h"

#include <time.h>

#include <utility>

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
  if (error_)
    return;
  tasks_.push_back(std::move(task));
  ++num_started_;
  if (!thread_.joinable())
    thread_ = std::thread([this] { run(); });
  condition_.notify_all();
}

bool BackgroundTask::running(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return !condition_.wait_for(lock, timeout, [this] { return tasks_.empty(); });
}

void BackgroundTask::wait() {
  std::unique_lock lock(mutex_);
  if (num_waited_ == num_started_)
    return;
  ++num_waited_;
  condition_.wait(lock, [this] { return num_finished_ >= num_waited_; });
  if (error_ && num_finished_ == num_waited_)
    std::rethrow_exception(std::exchange(error_, nullptr));
}

double BackgroundTask::cpu_seconds() {
  const std::lock_guard lock(mutex_);
  return cpu_seconds_;
}

void BackgroundTask::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    condition_.wait(lock, [this] { return !tasks_.empty() || stop_; });
    if (tasks_.empty())
      return;
    std::exception_ptr error;
    lock.unlock();
    try {
      tasks_.front()();
    } catch (...) {
      error = std::current_exception();
    }
    const double cpu_seconds = thread_cpu_seconds();
    lock.lock();
    cpu_seconds_ = cpu_seconds;
    tasks_.pop_front();
    ++num_finished_;
    if (error) {
      error_ = error;
      tasks_.clear();
      num_started_ = num_finished_;
    }
    condition_.notify_all();
  }
}

}  // namespace shardtune::parallel
