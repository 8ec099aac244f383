// Unicode normal form C through ICU, kept linear on hostile runs of combining marks.
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "data/text_split.h"

namespace shardtune::data {
namespace {

/// ICU sorts combining marks by insertion, which is quadratic in the length of a run. Longer runs
/// than this are put in canonical order first (a stable sort, which NFC would do as well).
constexpr std::size_t kMaxUnsortedMarks = 64;

const icu::Normalizer2& nfc() {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* instance = icu::Normalizer2::getNFCInstance(status);
  SHARDTUNE_ASSERT(U_SUCCESS(status) && instance != nullptr);
  return *instance;
}

struct Mark {
  int32_t value;
  uint8_t combining_class;
};

void append_marks(std::string& text, std::vector<Mark>& marks) {
  if (marks.size() > kMaxUnsortedMarks) {
    std::stable_sort(marks.begin(), marks.end(), [](const Mark& a, const Mark& b) {
      return a.combining_class < b.combining_class;
    });
  }
  for (const Mark& mark : marks)
    append_code_point(text, mark.value);
  marks.clear();
}

std::string sort_long_mark_runs(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  std::vector<Mark> marks;
  for (std::size_t offset = 0; offset < text.size();) {
    const CodePoint point = decode_code_point(text, offset);
    const uint8_t combining_class = u_getCombiningClass(point.value);
    if (combining_class != 0) {
      marks.push_back({point.value, combining_class});
    } else {
      append_marks(result, marks);
      append_code_point(result, point.value);
    }
    offset += static_cast<std::size_t>(point.length);
  }
  append_marks(result, marks);
  return result;
}

void append_normalized(std::string& result, std::string_view valid) {
  const std::string sorted = sort_long_mark_runs(valid);
  UErrorCode status = U_ZERO_ERROR;
  icu::StringByteSink<std::string> sink(&result);
  nfc().normalizeUTF8(0, icu::StringPiece(sorted.data(), static_cast<int32_t>(sorted.size())), sink,
                      nullptr, status);
  SHARDTUNE_ASSERT(U_SUCCESS(status));
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 128; });
}

}  // namespace

std::string normalize_nfc(std::string_view text) {
  if (is_ascii(text))
    return std::string(text);
  // In parts that stay in the cache (and below what ICU counts in int32): cut before an ASCII
  // character, which nothing composes with from the left.
  constexpr std::size_t kMaxPart = std::size_t{1} << 15;
  std::string result;
  result.reserve(text.size());
  std::size_t begin = 0;
  std::size_t offset = 0;
  const auto flush = [&] {
    if (offset > begin)
      append_normalized(result, text.substr(begin, offset - begin));
    begin = offset;
  };
  while (offset < text.size()) {
    const CodePoint point = decode_code_point(text, offset);
    if (point.value < 0) {
      flush();
      result.push_back(text[offset]);
      begin = offset + 1;
    } else if (point.value < 128 && offset - begin > kMaxPart) {
      flush();
    }
    offset += static_cast<std::size_t>(point.length);
  }
  flush();
  return result;
}

}  // namespace shardtune::data
