// Lines of standard input for a conversation: read as they are typed, and a Ctrl-C that interrupts
// reading or a reply instead of ending the program.
#pragma once

#include <optional>
#include <string>

namespace shardtune::launch {

/// While it lives, SIGINT sets a flag instead of ending the process.
class InterruptFlag {
 public:
  InterruptFlag();
  ~InterruptFlag();
  InterruptFlag(const InterruptFlag&) = delete;
  InterruptFlag& operator=(const InterruptFlag&) = delete;
  /// Whether SIGINT has come since clear().
  static bool is_set();
  static void clear();
};

class TerminalInput {
 public:
  enum class Result { kLine, kInterrupted, kEnd };
  /// The next line without its '\n'. kInterrupted: SIGINT came first, the line begun is dropped.
  /// DataError: a line longer than 1 MiB.
  Result next(std::string& line);

 private:
  std::string pending_;
  bool is_end_ = false;
};

/// Whether a person sits at both ends.
bool is_terminal();

}  // namespace shardtune::launch
