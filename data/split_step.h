// The steps that cut a text before merging, in the order of a tokenizer.json's pre_tokenizer. Each
// works on one piece of the step before, as in the reference.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/piece_split.h"
#include "io/pattern.h"

namespace shardtune::data {

/// Where in the whole input a text stands; prefixes of words depend on it.
enum class TextStart {
  kOfInput,     // its very beginning
  kAfterToken,  // behind an added token
  kInside       // in the middle of other text: no prefix is added
};

/// What becomes of a pattern's matches (Split of tokenizers).
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
enum class SplitWhat { kMatches, kBetween };  // kBetween: "invert"

/// A pattern or a literal text to cut at, where none of our own splitters will do.
struct PatternSplit {
  std::shared_ptr<const io::Pattern> pattern;  // nullptr: the literal
  std::string literal;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  SplitWhat what = SplitWhat::kMatches;

  /// DataError: the pattern reached a limit.
  std::vector<std::string_view> split(std::string_view text) const;
};

/// U+2581 for spaces, and one before the text where the scheme says so.
struct Metaspace {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string replacement = "\xE2\x96\x81";
  Prepend prepend = Prepend::kAlways;
  std::string apply(std::string_view text, TextStart start) const;
};

/// One of these is set.
struct SplitStep {
  PieceEnd piece_end = nullptr;
  std::shared_ptr<const PatternSplit> pattern;
  std::shared_ptr<const Metaspace> metaspace;
  bool prefix_space = false;  // ByteLevel's: before a piece that does not begin with one
};

}  // namespace shardtune::data
