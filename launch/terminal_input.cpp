#include "launch/terminal_input.h"

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "core/error.h"

namespace shardtune::launch {

namespace {

constexpr size_t kMaxLineBytes = 1 << 20;

volatile std::sig_atomic_t interrupted = 0;
struct sigaction before;

void note_interrupt(int) { interrupted = 1; }

}  // namespace

InterruptFlag::InterruptFlag() {
  struct sigaction action {};
  action.sa_handler = &note_interrupt;  // without SA_RESTART: read() returns
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, &before);
}
InterruptFlag::~InterruptFlag() { sigaction(SIGINT, &before, nullptr); }
bool InterruptFlag::is_set() { return interrupted != 0; }
void InterruptFlag::clear() { interrupted = 0; }

TerminalInput::Result TerminalInput::next(std::string& line) {
  for (;;) {
    if (const size_t end = pending_.find('\n'); end != std::string::npos) {
      line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      return Result::kLine;
    }
    if (is_end_) {
      line = std::move(pending_);
      pending_.clear();
      return line.empty() ? Result::kEnd : Result::kLine;
    }
    if (pending_.size() > kMaxLineBytes)
      throw DataError("standard input: a line is longer than 1 MiB. Split it.");
    char buffer[4096];
    const ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) {
      if (!InterruptFlag::is_set())
        continue;
      pending_.clear();
      return Result::kInterrupted;
    }
    if (got < 0)
      throw MissingInputError(std::string("standard input: cannot read: ") + std::strerror(errno) +
                              ".");
    if (got == 0)
      is_end_ = true;
    pending_.append(buffer, static_cast<size_t>(got > 0 ? got : 0));
  }
}

bool is_terminal() { return isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1; }

}  // namespace shardtune::launch
