// How long a run takes from the start of its process to its first step, part by part.
#pragma once

#include <chrono>
#include <string>

namespace shardtune::trainer {

class StartTimes {
 public:
  /// The first part began with the process, as the kernel tells it to 10 ms.
  StartTimes();

  /// The part since the last call, or since the process began.
  void end(const std::string& part);

  /// Since the process began, up to the last part.
  double seconds() const { return seconds_; }
  /// "inputs 0.12 s, plan 0.03 s, ..."
  const std::string& text() const { return text_; }

 private:
  std::chrono::steady_clock::time_point last_;
  double seconds_ = 0.0;
  std::string text_;
};

}  // namespace shardtune::trainer
