// A regular expression that came from a file (PCRE2, UTF-8, Unicode classes), run under limits of
// steps, depth and memory: a hostile pattern ends in an error, not in a long wait.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace shardtune::io {

struct PatternMatch {
  std::size_t begin = 0;
  std::size_t end = 0;
};

class Pattern {
 public:
  static constexpr std::size_t kMaxBytes = 16384;

  /// `where` names file and key in messages. DataError: not a pattern (with the offset), or too
  /// long.
  Pattern(std::string_view expression, std::string where);
  ~Pattern();
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  /// Whether all of the text matches. DataError when a limit is reached.
  bool matches_all(std::string_view text) const;

  /// Goes through one text. The text must be valid UTF-8 and outlive the search.
  class Search {
   public:
    Search(const Pattern& pattern, std::string_view text);
    ~Search();
    Search(const Search&) = delete;
    Search& operator=(const Search&) = delete;
    /// First match that begins at `offset` or later. DataError when a limit is reached.
    std::optional<PatternMatch> next(std::size_t offset);

   private:
    struct State;
    std::unique_ptr<State> state_;
  };

 private:
  struct Compiled;
  std::unique_ptr<Compiled> compiled_;
  std::string where_;
};

}  // namespace shardtune::io
