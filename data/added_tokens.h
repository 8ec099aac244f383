// Added tokens (special and user-defined ones) and finding them in a text: leftmost, longest, in
// one backward pass of an Aho-Corasick automaton, so time is linear for any tokens and any text.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shardtune::data {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool single_word = false;  // no word character on either side
  bool lstrip = false;       // swallows the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // looked for after normalisation
};

/// Part of a text in which special tokens are ordinary characters.
struct PlainRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// A part of a text: an added token, or text between (token == nullptr).
struct TextPart {
  const AddedToken* token = nullptr;
  std::size_t begin = 0;
  std::size_t end = 0;
};

class AddedTokenMatcher {
 public:
  /// Empty contents are left out. Of two tokens with one content the first counts.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);
  AddedTokenMatcher(const AddedTokenMatcher&) = delete;
  AddedTokenMatcher& operator=(const AddedTokenMatcher&) = delete;

  /// Cuts the text. A special token that touches a plain range (ascending, disjoint) stays text,
  /// as in the reference under encode_special_tokens.
  std::vector<TextPart> split(std::string_view text, std::span<const PlainRange> plain) const;

 private:
  struct State {
    std::vector<std::pair<uint8_t, int32_t>> edges;
    int32_t fail = 0;
    int32_t longest = -1;  // longest token whose reversed bytes end here
  };
  struct Match {
    std::size_t begin;
    int32_t token;
  };
  int32_t edge(int32_t state, uint8_t byte) const;
  int32_t step(int32_t state, uint8_t byte) const;
  void add_pattern(std::string_view content, int32_t token);
  void link_failures();
  std::vector<Match> longest_matches(std::string_view text) const;
  /// Adds the match's span to `parts`, with the text since `done`, if its sides allow it.
  void take(std::string_view text, const Match& match, std::size_t& done,
            std::vector<TextPart>& parts) const;

  std::vector<AddedToken> tokens_;
  std::vector<State> states_;
  std::array<int32_t, 256> root_;
};

}  // namespace shardtune::data
