// The normalizer, pre_tokenizer and decoder of a tokenizer.json. What is not implemented is refused
// by name: a quietly different split gives other ids.
#include <algorithm>

#include "core/error.h"
#include "data/tokenizer_document.h"

namespace shardtune::data {
namespace {

using io::Json;

constexpr int kMaxNesting = 8;  // of Sequence in Sequence
constexpr std::size_t kMaxSteps = 32;
constexpr std::size_t kMaxTextBytes = 64;  // of literal texts

void flatten(const TokenizerDocument& document, const Json& step, const std::string& list_key,
             int depth, std::vector<const Json*>& steps) {
  if (depth > kMaxNesting || steps.size() > kMaxSteps)
    document.damaged(list_key, "expected at most " + std::to_string(kMaxNesting) +
                                   " nested lists and " + std::to_string(kMaxSteps) + " steps");
  if (document.text(step, list_key, "type") != "Sequence") {
    steps.push_back(&step);
    return;
  }
  const Json* list = present(step, list_key);
  if (list == nullptr || !list->is_array())
    document.damaged(list_key, "expected a list");
  for (const Json& inner : list->as_array())
    flatten(document, inner, list_key, depth + 1, steps);
}

std::string cut(std::string_view text) { return std::string(text.substr(0, 80)); }

/// The pattern of Split or Replace: {"String": ...} or {"Regex": ...}.
struct PatternText {
  std::string text;
  bool is_regex = false;
};

PatternText pattern_of(const TokenizerDocument& document, const Json& step,
                       const std::string& path) {
  const Json* pattern = present(step, "pattern");
  const Json* literal = pattern != nullptr ? pattern->find("String") : nullptr;
  const Json* regex = pattern != nullptr ? pattern->find("Regex") : nullptr;
  const Json* value = literal != nullptr ? literal : regex;
  if (value == nullptr || !value->is_string() || value->as_string().empty())
    document.damaged(path + ".pattern", "expected {\"String\": text} or {\"Regex\": text}");
  if (literal != nullptr && literal->as_string().size() > kMaxTextBytes)
    document.damaged(path + ".pattern", "expected at most 64 bytes, found " +
                                            std::to_string(literal->as_string().size()));
  return {value->as_string(), literal == nullptr};
}

NormalizeStep normalize_step(const TokenizerDocument& document, const Json& step) {
  const std::string& type = document.text(step, "normalizer", "type");
  NormalizeStep result;
  if (type == "NFC")
    return result;
  if (type == "Prepend") {
    result.kind = NormalizeStep::Kind::kPrepend;
    result.to = document.text(step, "normalizer.Prepend", "prepend");
  } else if (type == "Replace") {
    result.kind = NormalizeStep::Kind::kReplace;
    const PatternText pattern = pattern_of(document, step, "normalizer.Replace");
    if (pattern.is_regex)
      document.not_there("normalizer.Replace", "the pattern '" + cut(pattern.text) + "'");
    result.from = pattern.text;
    result.to = document.text(step, "normalizer.Replace", "content");
  } else {
    document.not_there("normalizer", "'" + cut(type) + "'");
  }
  if (result.to.size() > kMaxTextBytes)
    document.damaged("normalizer", "expected texts of at most 64 bytes");
  return result;
}

SplitBehavior behavior_of(const TokenizerDocument& document, const std::string& path,
                          const std::string& name) {
  constexpr std::pair<std::string_view, SplitBehavior> kNames[] = {
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  for (const auto& [known, behavior] : kNames) {
    if (known == name)
      return behavior;
  }
  document.damaged(path, "expected a behaviour of Split, found '" + cut(name) + "'");
}

SplitStep known_step(PieceEnd piece_end) {
  SplitStep step;
  step.piece_end = piece_end;
  return step;
}

/// A pattern that covers every text may as well be given as "Removed" and "invert".
bool cuts_at_matches(const PatternSplit& split) {
  return (split.behavior == SplitBehavior::kIsolated && split.what == SplitWhat::kMatches) ||
         (split.behavior == SplitBehavior::kRemoved && split.what == SplitWhat::kBetween);
}

class StepReader {
 public:
  StepReader(const TokenizerDocument& document, TokenizerSpec& spec)
      : document_(document), spec_(spec) {}

  void read(const Json& step) {
    const std::string& type = document_.text(step, "pre_tokenizer", "type");
    if (type == "Digits") {
      const bool single = document_.flag(step, "pre_tokenizer.Digits", "individual_digits", false);
      add(known_step(single ? (has_byte_level_ ? &single_digit_byte_end : &single_digit_end)
                            : (has_byte_level_ ? &digit_byte_run_end : &digit_run_end)));
    } else if (type == "ByteLevel" && !has_byte_level_) {
      byte_level(step);
    } else if (type == "Split") {
      split(step);
    } else if (type == "Punctuation" && !has_byte_level_) {
      const Json* behavior = present(step, "behavior");
      if (behavior == nullptr || !behavior->is_string() || behavior->as_string() != "Contiguous")
        document_.not_there("pre_tokenizer.Punctuation", "a behaviour other than Contiguous");
      add(known_step(&punctuation_run_end));
    } else if (type == "Metaspace" && !has_byte_level_ && spec_.steps.empty()) {
      metaspace(step);
    } else {
      document_.not_there("pre_tokenizer", "a step '" + cut(type) + "'" +
                                               (has_byte_level_ ? " after ByteLevel" : ""));
    }
  }
  bool has_byte_level() const { return has_byte_level_; }

 private:
  void add(SplitStep step) { spec_.steps.push_back(std::move(step)); }

  void byte_level(const Json& step) {
    has_byte_level_ = true;
    if (document_.flag(step, "pre_tokenizer.ByteLevel", "add_prefix_space", true)) {
      SplitStep space;
      space.prefix_space = true;
      add(std::move(space));
    }
    if (document_.flag(step, "pre_tokenizer.ByteLevel", "use_regex", true))
      add(known_step(&gpt2_piece_end));
  }

  void split(const Json& step) {
    const std::string path = "pre_tokenizer.Split";
    const PatternText pattern = pattern_of(document_, step, path);
    PatternSplit split;
    split.behavior = behavior_of(document_, path, document_.text(step, path, "behavior"));
    if (document_.flag(step, path, "invert", false))
      split.what = SplitWhat::kBetween;
    const PieceEnd known = pattern.is_regex ? known_splitter(pattern.text) : nullptr;
    const bool covers_all = known != &three_digits_end && known != &bloom_piece_end;
    if (known != nullptr && cuts_at_matches(split) &&
        (covers_all || split.what == SplitWhat::kMatches)) {
      if (has_byte_level_ && known != &three_digits_end)
        document_.not_there("pre_tokenizer", "this Split after ByteLevel");
      add(known_step(known));
      return;
    }
    if (has_byte_level_)
      document_.not_there("pre_tokenizer", "this Split after ByteLevel");
    if (known == &bloom_piece_end)
      document_.not_there(path, "this behaviour with BLOOM's pattern");
    if (pattern.is_regex)
      split.pattern =
          std::make_shared<io::Pattern>(pattern.text, document_.name + ": " + path + ".pattern");
    else
      split.literal = pattern.text;
    SplitStep added;
    added.pattern = std::make_shared<PatternSplit>(std::move(split));
    add(std::move(added));
  }

  void metaspace(const Json& step) {
    const std::string path = "pre_tokenizer.Metaspace";
    Metaspace space;
    space.replacement = document_.text(step, path, "replacement");
    space.prepend = metaspace_prepend(document_, step, path);
    if (space.replacement.size() > kMaxTextBytes)
      document_.damaged(path, "expected a character");
    const std::string replacement = space.replacement;
    SplitStep marks;
    marks.metaspace = std::make_shared<Metaspace>(std::move(space));
    add(std::move(marks));
    if (!document_.flag(step, path, "split", true))
      return;
    PatternSplit words;
    words.literal = replacement;
    words.behavior = SplitBehavior::kMergedWithNext;
    SplitStep cutting;
    cutting.pattern = std::make_shared<PatternSplit>(std::move(words));
    add(std::move(cutting));
  }

 public:
  static Metaspace::Prepend metaspace_prepend(const TokenizerDocument& document, const Json& step,
                                              const std::string& path) {
    const Json* scheme = present(step, "prepend_scheme");
    if (scheme == nullptr)  // older files
      return document.flag(step, path, "add_prefix_space", true) ? Metaspace::Prepend::kAlways
                                                                 : Metaspace::Prepend::kNever;
    const std::string name = scheme->is_string() ? scheme->as_string() : "";
    if (name == "always")
      return Metaspace::Prepend::kAlways;
    if (name == "first")
      return Metaspace::Prepend::kFirst;
    if (name != "never")
      document.damaged(path + ".prepend_scheme", "expected always, first or never");
    return Metaspace::Prepend::kNever;
  }

 private:
  const TokenizerDocument& document_;
  TokenizerSpec& spec_;
  bool has_byte_level_ = false;
};

void read_decoder_step(const TokenizerDocument& document, const Json& step,
                       DecoderOptions& options) {
  const std::string& type = document.text(step, "decoder", "type");
  if (type == "Replace") {
    const PatternText pattern = pattern_of(document, step, "decoder.Replace");
    if (pattern.is_regex || document.text(step, "decoder.Replace", "content") != " ")
      document.not_there("decoder.Replace", "another replacement than of a text by a space");
    options.space_mark = pattern.text;
  } else if (type == "ByteFallback") {
    options.byte_fallback = true;
  } else if (type == "Strip") {
    const Json* start = present(step, "start");
    const Json* stop = present(step, "stop");
    if (document.text(step, "decoder.Strip", "content") != " " || start == nullptr ||
        !start->is_integer() || start->as_integer() != 1 || stop == nullptr ||
        !stop->is_integer() || stop->as_integer() != 0)
      document.not_there("decoder.Strip", "anything but one space at the beginning");
    options.leading_space = DecoderOptions::LeadingSpace::kStripOne;
  } else if (type == "Metaspace") {
    options.space_mark = document.text(step, "decoder.Metaspace", "replacement");
    if (StepReader::metaspace_prepend(document, step, "decoder.Metaspace") !=
        Metaspace::Prepend::kNever)
      options.leading_space = DecoderOptions::LeadingSpace::kStripFirstToken;
  } else if (type != "Fuse") {
    document.not_there("decoder", "'" + cut(type) + "'");
  }
}

}  // namespace

std::vector<const Json*> TokenizerDocument::steps_of(const Json& step,
                                                     const std::string& list_key) const {
  std::vector<const Json*> steps;
  flatten(*this, step, list_key, 0, steps);
  return steps;
}

void read_normalizer(const TokenizerDocument& document, TokenizerSpec& spec) {
  const Json* root = present(document.root, "normalizer");
  if (root == nullptr)
    return;
  for (const Json* step : document.steps_of(*root, "normalizers"))
    spec.normalizer.push_back(normalize_step(document, *step));
}

void read_pre_tokenizer(const TokenizerDocument& document, TokenizerSpec& spec) {
  StepReader reader(document, spec);
  if (const Json* root = present(document.root, "pre_tokenizer")) {
    for (const Json* step : document.steps_of(*root, "pretokenizers"))
      reader.read(*step);
  }
  spec.alphabet = reader.has_byte_level() ? TokenAlphabet::kByteLevel : TokenAlphabet::kText;
}

void read_decoder(const TokenizerDocument& document, TokenizerSpec& spec) {
  const Json* root = present(document.root, "decoder");
  if (root == nullptr)
    document.not_there("decoder", "a file without a decoder");
  spec.decoder.alphabet = spec.alphabet;
  const auto steps = document.steps_of(*root, "decoders");
  const bool byte_level =
      steps.size() == 1 && document.text(*steps[0], "decoder", "type") == "ByteLevel";
  if (byte_level != (spec.alphabet == TokenAlphabet::kByteLevel))
    document.not_there("decoder",
                       "one that does not fit the pre_tokenizer (ByteLevel in one of "
                       "them)");
  if (byte_level)
    return;
  for (const Json* step : steps)
    read_decoder_step(document, *step, spec.decoder);
}

void apply_pipeline(const std::string& name, TokenizerSpec& spec) {
  Json root = Json::object();
  const auto set = [&](const char* key, const std::string& text) {
    if (!text.empty())
      root.set(key, io::parse_json(text, name));
  };
  set("normalizer", spec.pipeline.normalizer);
  set("pre_tokenizer", spec.pipeline.pre_tokenizer);
  set("decoder", spec.pipeline.decoder);
  const TokenizerDocument document{name, root};
  read_normalizer(document, spec);
  read_pre_tokenizer(document, spec);
  read_decoder(document, spec);
}

}  // namespace shardtune::data
