// Signals while training: USR1, TERM and INT set a flag that the loop asks at the edge of a step,
// where the ranks decide together. A second signal leaves the process at once; so does a timer,
// when the step under way does not end. Both leave every committed checkpoint as it is.
#pragma once

#include <array>
#include <csignal>
#include <cstddef>

namespace shardtune::trainer {

/// Seconds from the first signal to the forced exit.
inline constexpr unsigned kForcedExitSeconds = 120;

/// Installs the handlers while it lives, and restores what was there before. One per process.
/// Handlers run on a stack of their own and on the thread that made the guard: oneDNN's generated
/// code uses the stack pointer as an ordinary register, so that a handler on the normal stack would
/// write into the heap.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

  /// The signal that arrived, 0 when none.
  int received() const;

 private:
  static constexpr int kSignals[] = {SIGUSR1, SIGTERM, SIGINT};
  void use_own_stack();

  struct sigaction previous_[4];
  stack_t previous_stack_;
  std::array<std::byte, 1 << 16> stack_;
};

}  // namespace shardtune::trainer
