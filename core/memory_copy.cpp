#include "core/memory_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace shardtune {

#if defined(__SSE2__)

void copy_past_caches(std::byte* to, const std::byte* from, size_t num_bytes) {
  constexpr size_t kLine = 64;
  const size_t misaligned = reinterpret_cast<uintptr_t>(to) % kLine;
  const size_t head = std::min(num_bytes, misaligned == 0 ? 0 : kLine - misaligned);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  num_bytes -= head;
  // Whole lines, so that the write-combining buffers leave as full lines.
  for (; num_bytes >= kLine; num_bytes -= kLine, to += kLine, from += kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* target = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(source);
    const __m128i b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2);
    const __m128i d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  _mm_sfence();
  std::memcpy(to, from, num_bytes);
}

void pause_in_spin() { _mm_pause(); }

#else

void copy_past_caches(std::byte* to, const std::byte* from, size_t num_bytes) {
  std::memcpy(to, from, num_bytes);
}

void pause_in_spin() {}

#endif

}  // namespace shardtune
