// How far a run is: one line that is written over on a terminal, plain log lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>

namespace shardtune::trainer {

struct ProgressPoint {
  int64_t step = 0;  // steps done
  double loss = 0.0;
  double learning_rate = 0.0;
  double tokens_per_second = 0.0;
  double limit_fraction = 0.0;  // of this step, see trainer/limit.h
};

class Progress {
 public:
  /// `first_step` steps were done before; the run ends at last_step.
  Progress(int64_t first_step, int64_t last_step);
  /// Ends a line under way.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(const ProgressPoint& point);
  /// Moves off the line under way, before something else is printed.
  void clear();

 private:
  bool is_terminal_;
  bool line_open_ = false;
  int64_t first_step_;
  int64_t last_step_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace shardtune::trainer
