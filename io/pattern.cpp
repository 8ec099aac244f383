#include "io/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "core/error.h"

namespace shardtune::io {
namespace {

// Far above what the patterns of published files take for one match.
constexpr uint32_t kMatchLimit = 1'000'000;  // steps back
constexpr uint32_t kDepthLimit = 100'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;
constexpr uint32_t kMaxNesting = 64;  // of parentheses

template <auto kFree>
struct FreeWith {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Code = std::unique_ptr<pcre2_code, FreeWith<&pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, FreeWith<&pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, FreeWith<&pcre2_match_context_free>>;
using CompileContext =
    std::unique_ptr<pcre2_compile_context, FreeWith<&pcre2_compile_context_free>>;

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

PCRE2_SPTR code_units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

[[noreturn]] void refuse(const std::string& where, std::string_view expression,
                         const std::string& expected, const std::string& found) {
  throw DataError(where + ": expected " + expected + ", found '" +
                  std::string(expression.substr(0, 80)) + "': " + found +
                  ". Fetch the file again, or write a simpler pattern.");
}

[[noreturn]] void refuse_match(const std::string& where, int code) {
  throw DataError(where + ": expected a pattern that a text can be matched with within " +
                  std::to_string(kMatchLimit) + " steps and " +
                  std::to_string(kHeapLimitKib / 1024) + " MiB, found more (" + message_of(code) +
                  "). Use a pattern without nested repetitions, or a shorter text.");
}

}  // namespace

struct Pattern::Compiled {
  Code code;
  MatchContext context;
  std::string expression;
};

Pattern::Pattern(std::string_view expression, std::string where)
    : compiled_(std::make_unique<Compiled>()), where_(std::move(where)) {
  if (expression.empty() || expression.size() > kMaxBytes)
    throw DataError(where_ + ": expected a pattern of 1 to " + std::to_string(kMaxBytes) +
                    " bytes, found " + std::to_string(expression.size()) +
                    ". Fetch the file again.");
  const CompileContext context(pcre2_compile_context_create(nullptr));
  SHARDTUNE_ASSERT(context != nullptr);
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  int error = 0;
  PCRE2_SIZE offset = 0;
  compiled_->expression = expression;
  compiled_->code.reset(pcre2_compile(code_units(expression), expression.size(),
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error,
                                      &offset, context.get()));
  if (compiled_->code == nullptr)
    refuse(where_, expression, "a regular expression",
           message_of(error) + " at byte " + std::to_string(offset));
  compiled_->context.reset(pcre2_match_context_create(nullptr));
  SHARDTUNE_ASSERT(compiled_->context != nullptr);
  pcre2_set_match_limit(compiled_->context.get(), kMatchLimit);
  pcre2_set_depth_limit(compiled_->context.get(), kDepthLimit);
  pcre2_set_heap_limit(compiled_->context.get(), kHeapLimitKib);
}

Pattern::~Pattern() = default;

bool Pattern::matches_all(std::string_view text) const {
  const MatchData data(pcre2_match_data_create_from_pattern(compiled_->code.get(), nullptr));
  SHARDTUNE_ASSERT(data != nullptr);
  const int result =
      pcre2_match(compiled_->code.get(), code_units(text), text.size(), 0,
                  PCRE2_ANCHORED | PCRE2_ENDANCHORED, data.get(), compiled_->context.get());
  if (result < 0 && result != PCRE2_ERROR_NOMATCH)
    refuse_match(where_, result);
  return result >= 0;
}

struct Pattern::Search::State {
  const Pattern& pattern;
  std::string_view text;
  MatchData data;
};

Pattern::Search::Search(const Pattern& pattern, std::string_view text)
    : state_(new State{pattern, text,
                       MatchData(pcre2_match_data_create_from_pattern(pattern.compiled_->code.get(),
                                                                      nullptr))}) {
  SHARDTUNE_ASSERT(state_->data != nullptr);
}

Pattern::Search::~Search() = default;

std::optional<PatternMatch> Pattern::Search::next(std::size_t offset) {
  const Compiled& compiled = *state_->pattern.compiled_;
  // Without PCRE2_NO_UTF_CHECK each search would look through all the text once more.
  const int result =
      pcre2_match(compiled.code.get(), code_units(state_->text), state_->text.size(), offset,
                  PCRE2_NO_UTF_CHECK, state_->data.get(), compiled.context.get());
  if (result == PCRE2_ERROR_NOMATCH)
    return std::nullopt;
  if (result < 0)
    refuse_match(state_->pattern.where_, result);
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state_->data.get());
  // \K inside a look-around can place the beginning behind the end.
  if (ends[0] > ends[1] || ends[0] < offset)
    refuse(state_->pattern.where_, compiled.expression, "matches from left to right",
           "one that goes back");
  return PatternMatch{ends[0], ends[1]};
}

}  // namespace shardtune::io
