#include "data/split_step.h"

#include "data/text_split.h"

namespace shardtune::data {
namespace {

struct Piece {
  std::size_t begin;
  std::size_t end;
  bool match;
};

void add(std::vector<Piece>& pieces, std::size_t begin, std::size_t end, bool match) {
  if (begin < end)
    pieces.push_back({begin, end, match});
}

/// Bytes of valid UTF-8 from `offset` on.
std::size_t valid_end(std::string_view text, std::size_t offset) {
  while (offset < text.size()) {
    const CodePoint point = decode_code_point(text, offset);
    if (point.value < 0)
      break;
    offset += static_cast<std::size_t>(point.length);
  }
  return offset;
}

std::vector<Piece> literal_pieces(std::string_view text, const std::string& literal) {
  std::vector<Piece> pieces;
  std::size_t done = 0;
  for (std::size_t at = 0; (at = text.find(literal, done)) != std::string_view::npos;) {
    add(pieces, done, at, false);
    done = at + literal.size();
    add(pieces, at, done, true);
  }
  add(pieces, done, text.size(), false);
  return pieces;
}

/// Matches in [begin, end), which is valid UTF-8. A byte that is none belongs to no match.
void pattern_pieces(std::string_view text, std::size_t begin, std::size_t end,
                    const io::Pattern& pattern, std::vector<Piece>& pieces) {
  const std::string_view part = text.substr(begin, end - begin);
  io::Pattern::Search search(pattern, part);
  std::size_t done = 0;
  std::size_t from = 0;
  while (from < part.size()) {
    const auto match = search.next(from);
    if (!match)
      break;
    if (match->end == match->begin) {  // an empty match cuts nothing
      if (match->begin >= part.size())
        break;
      from = match->begin + static_cast<std::size_t>(decode_code_point(part, match->begin).length);
      continue;
    }
    add(pieces, begin + done, begin + match->begin, false);
    add(pieces, begin + match->begin, begin + match->end, true);
    done = from = match->end;
  }
  add(pieces, begin + done, end, false);
}

std::vector<Piece> find_pieces(std::string_view text, const PatternSplit& split) {
  if (split.pattern == nullptr)
    return literal_pieces(text, split.literal);
  std::vector<Piece> pieces;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = valid_end(text, begin);
    if (end > begin)
      pattern_pieces(text, begin, end, *split.pattern, pieces);
    add(pieces, end, std::min(end + 1, text.size()), false);
    begin = end + 1;
  }
  return pieces;
}

}  // namespace

std::vector<std::string_view> PatternSplit::split(std::string_view text) const {
  std::vector<Piece> pieces = find_pieces(text, *this);
  std::vector<Piece> kept;
  bool previous_was_match = false;
  for (Piece& piece : pieces) {
    if (what == SplitWhat::kBetween)
      piece.match = !piece.match;
    const bool joins_previous =
        !kept.empty() &&
        ((behavior == SplitBehavior::kMergedWithPrevious && piece.match && !previous_was_match) ||
         (behavior == SplitBehavior::kMergedWithNext && previous_was_match && !piece.match) ||
         (behavior == SplitBehavior::kContiguous && piece.match == previous_was_match));
    const bool dropped = behavior == SplitBehavior::kRemoved && piece.match;
    if (joins_previous)
      kept.back().end = piece.end;
    else if (!dropped)
      kept.push_back(piece);
    previous_was_match = piece.match;
  }
  std::vector<std::string_view> views;
  views.reserve(kept.size());
  for (const Piece& piece : kept)
    views.push_back(text.substr(piece.begin, piece.end - piece.begin));
  return views;
}

std::string Metaspace::apply(std::string_view text, TextStart start) const {
  std::string result;
  result.reserve(text.size() + text.size() / 4 + replacement.size());
  const bool wanted = prepend == Prepend::kAlways  ? start != TextStart::kInside
                      : prepend == Prepend::kFirst ? start == TextStart::kOfInput
                                                   : false;
  const bool has_one = text.starts_with(' ') || text.starts_with(replacement);
  if (wanted && !has_one)
    result += replacement;
  for (const char c : text) {
    if (c == ' ')
      result += replacement;
    else
      result += c;
  }
  return result;
}

}  // namespace shardtune::data
