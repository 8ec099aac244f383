#include "trainer/signals.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <cstring>

#include "core/error.h"
#include "core/parallel_for.h"

namespace shardtune::trainer {
namespace {

// A handler can reach nothing but a global. Only async-signal-safe calls are made in it.
volatile std::sig_atomic_t g_received = 0;

volatile std::sig_atomic_t g_received_at_ms = 0;

// One stop often arrives twice: a scheduler signals the launcher and the ranks, and the launcher
// forwards it. Repeats within this time are one signal.
constexpr long kSameSignalMs = 100;

constexpr int kPreempted = static_cast<int>(ExitCode::kPreempted);

void leave(const char* text, size_t length) {
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text, length);
  _exit(kPreempted);
}

std::sig_atomic_t now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::sig_atomic_t>((now.tv_sec * 1000 + now.tv_nsec / 1000000) & 0x3fffffff);
}

extern "C" void shardtune_on_signal(int number) {
  static constexpr char kSecond[] =
      "\nsecond signal: leaving at once; the newest checkpoint is the last one saved\n";
  if (g_received != 0) {
    if (now_ms() - g_received_at_ms < kSameSignalMs)
      return;
    leave(kSecond, sizeof kSecond - 1);
  }
  g_received = number;
  g_received_at_ms = now_ms();
  alarm(kForcedExitSeconds);
}

extern "C" void shardtune_on_alarm(int) {
  static constexpr char kLate[] =
      "\nthe step did not end in time after the signal: leaving; the newest checkpoint is the last "
      "one saved\n";
  leave(kLate, sizeof kLate - 1);
}

}  // namespace

void SignalGuard::use_own_stack() {
  stack_t own{};
  own.ss_sp = stack_.data();
  own.ss_size = stack_.size();
  sigaltstack(&own, &previous_stack_);
  // Worker threads have no such stack; with the signals blocked there, this thread gets them.
  const pthread_t here = pthread_self();
  parallel_for(num_threads(), 1, [here](int64_t, int64_t) {
    if (pthread_equal(pthread_self(), here) != 0)
      return;
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGALRM);
    for (const int number : kSignals)
      sigaddset(&blocked, number);
    pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  });
}

SignalGuard::SignalGuard() {
  g_received = 0;
  use_own_stack();
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  action.sa_handler = &shardtune_on_alarm;
  sigaction(SIGALRM, &action, &previous_[3]);
  action.sa_handler = &shardtune_on_signal;
  for (int i = 0; i < 3; ++i)
    sigaction(kSignals[i], &action, &previous_[i]);
}

SignalGuard::~SignalGuard() {
  alarm(0);
  for (int i = 0; i < 3; ++i)
    sigaction(kSignals[i], &previous_[i], nullptr);
  sigaction(SIGALRM, &previous_[3], nullptr);
  sigaltstack(&previous_stack_, nullptr);
}

int SignalGuard::received() const { return g_received; }

}  // namespace shardtune::trainer
