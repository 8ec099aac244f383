// The options of one verb. Boost.Program_options parses; this class adds what users of a strict
// tool expect: unknown names with the nearest known one, numbers with their range, options of later
// versions refused by name.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace shardtune::launch {

/// Bounds of an integer option, inclusive.
struct IntegerRange {
  int64_t min;
  int64_t max;
};

/// Bounds of a number option, inclusive.
struct NumberBounds {
  double min;
  double max;
};

class CommandLine {
 public:
  /// `usage` follows "shardtune ", e.g. "eval --model M --data FILE".
  CommandLine(std::string usage, std::string summary);
  ~CommandLine();
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;

  void flag(const std::string& name, const std::string& help);
  void value(const std::string& name, const std::string& placeholder, const std::string& help);
  /// May be given several times.
  void repeated(const std::string& name, const std::string& placeholder, const std::string& help);
  /// The one argument without a name.
  void positional(const std::string& name, const std::string& help);
  /// Known, not there yet: giving it is an UnsupportedError naming docs/status.md.
  void later(const std::string& name);
  /// --threads N.
  void threads_option();

  /// Parses the arguments after the verb. False when --help was given (and printed).
  /// ConfigError: unknown, repeated or incomplete option, an argument too many
  [[nodiscard]] bool parse(std::span<const std::string> arguments);

  bool has(const std::string& name) const;
  /// ConfigError when it was not given.
  std::string required(const std::string& name) const;
  std::string text_or(const std::string& name, const std::string& otherwise) const;
  /// ConfigError where the text is not UTF-8.
  std::string utf8_or(const std::string& name, const std::string& otherwise) const;
  int64_t integer_or(const std::string& name, int64_t otherwise, IntegerRange range) const;
  double number_or(const std::string& name, double otherwise, NumberBounds bounds) const;
  std::vector<std::string> all(const std::string& name) const;
  /// One of `choices`; ConfigError with the nearest one. Those in `later` are refused by name.
  std::string choice_or(const std::string& name, const std::string& otherwise,
                        const std::vector<std::string>& choices,
                        const std::vector<std::string>& later = {}) const;
  /// Sets the number of threads: --threads, else OMP_NUM_THREADS, else `otherwise` where positive,
  /// else all cores that this process may use.
  void apply_threads(int64_t otherwise = 0) const;

  std::string help_text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// An integer written in decimal digits; ConfigError naming `what` otherwise.
int64_t parse_integer(const std::string& text, const std::string& what, IntegerRange range);

}  // namespace shardtune::launch
