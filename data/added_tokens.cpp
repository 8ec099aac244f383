#include "data/added_tokens.h"

#include <algorithm>

#include "data/text_split.h"

namespace shardtune::data {

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), states_(1) {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    if (!tokens_[i].content.empty())
      add_pattern(tokens_[i].content, static_cast<int32_t>(i));
  }
  root_.fill(0);
  for (const auto& [byte, next] : states_[0].edges)
    root_[byte] = next;
  link_failures();
}

int32_t AddedTokenMatcher::edge(int32_t state, uint8_t byte) const {
  for (const auto& [label, next] : states_[static_cast<std::size_t>(state)].edges) {
    if (label == byte)
      return next;
  }
  return -1;
}

int32_t AddedTokenMatcher::step(int32_t state, uint8_t byte) const {
  while (state != 0) {
    const int32_t next = edge(state, byte);
    if (next >= 0)
      return next;
    state = states_[static_cast<std::size_t>(state)].fail;
  }
  return root_[byte];
}

// Patterns go in reversed: read backward, the longest pattern ending at a byte of the text is the
// longest token beginning there.
void AddedTokenMatcher::add_pattern(std::string_view content, int32_t token) {
  int32_t state = 0;
  for (std::size_t i = content.size(); i-- > 0;) {
    const auto byte = static_cast<uint8_t>(content[i]);
    int32_t next = edge(state, byte);
    if (next < 0) {
      next = static_cast<int32_t>(states_.size());
      states_[static_cast<std::size_t>(state)].edges.emplace_back(byte, next);
      states_.emplace_back();
    }
    state = next;
  }
  int32_t& longest = states_[static_cast<std::size_t>(state)].longest;
  if (longest < 0)
    longest = token;
}

void AddedTokenMatcher::link_failures() {
  std::vector<int32_t> queue;
  for (const auto& [byte, next] : states_[0].edges)
    queue.push_back(next);
  for (std::size_t i = 0; i < queue.size(); ++i) {
    const State& state = states_[static_cast<std::size_t>(queue[i])];
    for (const auto& [byte, next] : state.edges) {
      State& child = states_[static_cast<std::size_t>(next)];
      child.fail = step(state.fail, byte);
      if (child.longest < 0)
        child.longest = states_[static_cast<std::size_t>(child.fail)].longest;
      queue.push_back(next);
    }
  }
}

std::vector<AddedTokenMatcher::Match> AddedTokenMatcher::longest_matches(
    std::string_view text) const {
  std::vector<Match> matches;
  int32_t state = 0;
  for (std::size_t i = text.size(); i-- > 0;) {
    const auto byte = static_cast<uint8_t>(text[i]);
    state = state == 0 ? root_[byte] : step(state, byte);
    if (state != 0 && states_[static_cast<std::size_t>(state)].longest >= 0)
      matches.push_back({i, states_[static_cast<std::size_t>(state)].longest});
  }
  std::reverse(matches.begin(), matches.end());
  return matches;
}

std::vector<TextPart> AddedTokenMatcher::split(std::string_view text,
                                               std::span<const PlainRange> plain) const {
  std::vector<TextPart> parts;
  std::size_t done = 0;       // text before this is in `parts`
  std::size_t free_from = 0;  // matches may begin from here; refused ones move it too
  std::size_t range = 0;      // first plain range that ends behind the match's beginning
  if (states_.size() > 1) {
    for (const Match& match : longest_matches(text)) {
      if (match.begin < std::max(done, free_from))
        continue;
      const AddedToken& token = tokens_[static_cast<std::size_t>(match.token)];
      const std::size_t end = match.begin + token.content.size();
      while (range < plain.size() && plain[range].end <= match.begin)
        ++range;
      if (token.special && range < plain.size() && plain[range].begin < end) {
        // Not past the range: what stands behind it may be a token of the template.
        free_from = std::min(end, plain[range].end);
        continue;
      }
      free_from = end;
      take(text, match, done, parts);
    }
  }
  if (done < text.size())
    parts.push_back({nullptr, done, text.size()});
  return parts;
}

void AddedTokenMatcher::take(std::string_view text, const Match& match, std::size_t& done,
                             std::vector<TextPart>& parts) const {
  const AddedToken& token = tokens_[static_cast<std::size_t>(match.token)];
  std::size_t begin = match.begin;
  std::size_t end = match.begin + token.content.size();
  if (token.single_word && (word_char_before(text, begin) || word_char_at(text, end)))
    return;
  if (token.lstrip)
    begin = skip_space_left(text, begin, done);
  if (token.rstrip)
    end = skip_space_right(text, end);
  if (done < begin)
    parts.push_back({nullptr, done, begin});
  parts.push_back({&token, begin, end});
  done = end;
}

}  // namespace shardtune::data
