// One thread that runs tasks beside its owner's work, in the order of their starts: gathers of
// units, the writing of a checkpoint. It is no OpenMP thread, so a task must not run parallel
// loops. A task that throws is the last: those started after it, until its error is taken, do not
// run.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace shardtune::parallel {

class BackgroundTask {
 public:
  BackgroundTask() = default;
  /// Waits for all tasks.
  ~BackgroundTask();
  BackgroundTask(const BackgroundTask&) = delete;
  BackgroundTask& operator=(const BackgroundTask&) = delete;

  void start(std::function<void()> task);
  /// Whether a task is left to finish; waits up to `timeout` for the last one's end.
  bool running(std::chrono::milliseconds timeout = std::chrono::milliseconds(0));
  /// Waits for the end of the oldest task that was not waited for; returns at once where there is
  /// none. Rethrows what that task threw.
  void wait();
  /// Processor time that finished tasks have taken.
  double cpu_seconds();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable condition_;
  std::deque<std::function<void()>> tasks_;  // the first one runs
  int64_t num_started_ = 0;
  int64_t num_finished_ = 0;
  int64_t num_waited_ = 0;
  std::exception_ptr error_;  // of the task finished last
  bool stop_ = false;
  double cpu_seconds_ = 0.0;
  std::thread thread_;  // from the first start() on
};

}  // namespace shardtune::parallel
