// One thread that runs one task at a time beside its owner's work: a prefetch. It is no OpenMP
// thread, so a task must not run parallel loops.
#pragma once

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
  /// Waits until nothing is under way; rethrows what the task threw, once.
  void wait();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable condition_;
  std::function<void()> task_;  // set while a task waits or runs
  std::exception_ptr error_;
  bool stop_ = false;
  std::thread thread_;  // from the first start() on
};

}  // namespace shardtune::parallel
