// One thread that runs one task at a time beside its owner's work: a prefetch, the writing of a
// checkpoint. It is no OpenMP thread, so a task must not run parallel loops.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace shardtune::parallel {

class BackgroundTask {
 public:
  BackgroundTask() = default;
  /// Waits for a task under way.
  ~BackgroundTask();
  BackgroundTask(const BackgroundTask&) = delete;
  BackgroundTask& operator=(const BackgroundTask&) = delete;

  /// Starts the task; the one before must have been waited for.
  void start(std::function<void()> task);
  /// Whether a task is under way; waits up to `timeout` for its end.
  bool running(std::chrono::milliseconds timeout = std::chrono::milliseconds(0));
  /// Waits until nothing is under way; rethrows what the task threw, once.
  void wait();
  /// Processor time that finished tasks have taken.
  double cpu_seconds();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable condition_;
  std::function<void()> task_;  // set while a task waits or runs
  std::exception_ptr error_;
  bool stop_ = false;
  double cpu_seconds_ = 0.0;
  std::thread thread_;  // from the first start() on
};

}  // namespace shardtune::parallel
