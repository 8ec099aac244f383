// Compiled with AVX512-BF16 enabled: includes nothing but plain structs and intrinsics (see
// decode_machine.h). A block's 16 products are one vector, rounded by one instruction; a shuffle of
// words then looks up 32 codes at a time.
#include <immintrin.h>

#include "quant/decode_machine.h"

namespace shardtune::quant {

namespace {
// 32 bytes of codes, the high nibble first, to 64 values. A shuffle of words reads the low five
// bits of an index only, and the table stands twice in its register: no nibble needs a mask.
void nf4_codes(const uint8_t* codes, __m512i table, uint16_t* out) {
  const __m256i packed = _mm256_permute4x64_epi64(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)), _MM_SHUFFLE(3, 1, 2, 0));
  const __m256i high = _mm256_srli_epi16(packed, 4);
  const __m512i first = _mm512_cvtepu8_epi16(_mm256_unpacklo_epi8(high, packed));
  const __m512i second = _mm512_cvtepu8_epi16(_mm256_unpackhi_epi8(high, packed));
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(first, table));
  _mm512_storeu_si512(out + 32, _mm512_permutexvar_epi16(second, table));
}

void nf4(const uint8_t* codes, const float* absmax, int64_t num_blocks, int64_t block_size,
         const float* table, uint16_t* out) {
  const __m512 values = _mm512_loadu_ps(table);
  for (int64_t b = 0; b < num_blocks; ++b) {
    const __m256i rounded = reinterpret_cast<__m256i>(
        _mm512_cvtneps_pbh(_mm512_mul_ps(values, _mm512_set1_ps(absmax[b]))));
    const __m512i products = _mm512_broadcast_i64x4(rounded);
    for (int64_t i = 0; i < block_size; i += 64, codes += 32, out += 64)
      nf4_codes(codes, products, out);
  }
}

__m512 widen(__m128i codes, __m512 scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
}

void int8(const int8_t* codes, int64_t count, float scale, uint16_t* out) {
  const __m512 factor = _mm512_set1_ps(scale);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const auto* const from = reinterpret_cast<const __m128i*>(codes + i);
    const __m512 low = widen(_mm_loadu_si128(from), factor);
    const __m512 high = widen(_mm_loadu_si128(from + 1), factor);
    _mm512_storeu_si512(out + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
  for (; i < count; i += 16) {
    const int64_t rest = count - i < 16 ? count - i : 16;
    const auto mask = static_cast<__mmask16>((1 << rest) - 1);
    const __m512 value = widen(_mm_maskz_loadu_epi8(mask, codes + i), factor);
    _mm256_mask_storeu_epi16(out + i, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
  }
}
}  // namespace

const DecodeFunctions* machine_decoders() {
  static constexpr DecodeFunctions kFunctions{&nf4, &int8};
  return &kFunctions;
}

}  // namespace shardtune::quant
