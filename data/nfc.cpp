// Unicode normal form C through ICU, kept linear on hostile runs of combining marks.
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <algorithm>
#include <array>
#include <numeric>

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

/// A run of combining marks in canonical order: a counting sort of their bytes by class.
void append_sorted(std::string& result, std::string_view marks) {
  std::array<std::size_t, 257> ends{};  // [class + 1]: first its bytes, then where the next goes
  const auto for_each = [&](const auto& use) {
    for (std::size_t offset = 0; offset < marks.size();) {
      const CodePoint mark = decode_code_point(marks, offset);
      use(u_getCombiningClass(mark.value), offset, static_cast<std::size_t>(mark.length));
      offset += static_cast<std::size_t>(mark.length);
    }
  };
  for_each([&](uint8_t combining_class, std::size_t, std::size_t length) {
    ends[combining_class + std::size_t{1}] += length;
  });
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  const std::size_t begin = result.size();
  result.resize(begin + marks.size());
  for_each([&](uint8_t combining_class, std::size_t offset, std::size_t length) {
    marks.copy(result.data() + begin + ends[combining_class], length, offset);
    ends[combining_class] += length;
  });
}

std::string sort_long_mark_runs(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  std::size_t run = 0;    // begin of the marks that end at offset
  std::size_t count = 0;  // of them
  const auto append_run = [&](std::size_t end) {
    const std::string_view marks = text.substr(run, end - run);
    if (count > kMaxUnsortedMarks)
      append_sorted(result, marks);
    else
      result += marks;
    count = 0;
  };
  for (std::size_t offset = 0; offset < text.size();) {
    const CodePoint point = decode_code_point(text, offset);
    const auto length = static_cast<std::size_t>(point.length);
    if (u_getCombiningClass(point.value) != 0) {
      ++count;
    } else {
      append_run(offset);
      result += text.substr(offset, length);
      run = offset + length;
    }
    offset += length;
  }
  append_run(text.size());
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
