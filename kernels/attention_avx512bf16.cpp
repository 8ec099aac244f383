// Compiled with AVX512-BF16 enabled: includes nothing but plain templates and intrinsics, so that
// no function of a shared header is built for instructions that other machines lack.
#include <immintrin.h>

#include "kernels/attention_bf16_tiles.h"

namespace shardtune::kernels::bf16 {

namespace {
struct Avx512Ops {
  using V = __m512;
  using Pairs = __m512i;

  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static V set(float x) { return _mm512_set1_ps(x); }
  static Pairs load_pairs(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static Pairs set_pair(uint32_t pair) { return _mm512_set1_epi32(static_cast<int>(pair)); }
  static V dot_pairs(V sum, Pairs a, Pairs b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
  static V scale_by_power_of_two(V a, V n) { return _mm512_scalef_ps(a, n); }
  static V select(uint32_t bits, V yes, V no) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), no, yes);
  }
  static V replace_minus_infinity(V a) {
    const __mmask16 none = _mm512_cmp_ps_mask(a, set(-__builtin_inff()), _CMP_EQ_OQ);
    return _mm512_mask_blend_ps(none, a, _mm512_setzero_ps());
  }
  // Word i = (bf16(odd[i]) << 16) | bf16(even[i]).
  static void store_pairs(uint32_t* p, V even, V odd) {
    const auto widen = [](V v) {
      return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
    };
    _mm512_storeu_si512(p, _mm512_or_si512(widen(even), _mm512_slli_epi32(widen(odd), 16)));
  }
  static void store_bf16(uint16_t* p, V low, V high) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
  // Word i = (odd[i] << 16) | even[i].
  static void store_interleaved(uint32_t* p, const uint16_t* even, const uint16_t* odd) {
    _mm512_storeu_si512(p, _mm512_or_si512(words(even), _mm512_slli_epi32(words(odd), 16)));
  }
  static V widen(const uint16_t* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(words(p), 16)); }
  static float sum(V v) { return _mm512_reduce_add_ps(v); }
  // to[c * to_stride + r] = word c of row r, 16 x 16; rows are `stride` bf16 apart.
  static void transpose_words(const uint16_t* from, int64_t stride, uint32_t* to,
                              int64_t to_stride) {
    __m512i a[16], b[16];
    for (int r = 0; r < 16; ++r)
      a[r] = _mm512_loadu_si512(from + r * stride);
    for (int r = 0; r < 16; r += 2) {
      b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
      b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    }
    for (int r = 0; r < 16; r += 4) {  // a[r + k]: column k of each lane of four
      a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
      a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
      a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
      a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
    for (int k = 0; k < 4; ++k) {
      const __m512i low02 = _mm512_shuffle_i32x4(a[k], a[k + 4], 0x88);
      const __m512i low13 = _mm512_shuffle_i32x4(a[k], a[k + 4], 0xdd);
      const __m512i high02 = _mm512_shuffle_i32x4(a[k + 8], a[k + 12], 0x88);
      const __m512i high13 = _mm512_shuffle_i32x4(a[k + 8], a[k + 12], 0xdd);
      _mm512_storeu_si512(to + k * to_stride, _mm512_shuffle_i32x4(low02, high02, 0x88));
      _mm512_storeu_si512(to + (k + 4) * to_stride, _mm512_shuffle_i32x4(low13, high13, 0x88));
      _mm512_storeu_si512(to + (k + 8) * to_stride, _mm512_shuffle_i32x4(low02, high02, 0xdd));
      _mm512_storeu_si512(to + (k + 12) * to_stride, _mm512_shuffle_i32x4(low13, high13, 0xdd));
    }
  }

 private:
  static __m512i words(const uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
};

void pack_keys(const PackTask& task) { Tiles<Avx512Ops>::pack_keys(task); }
void query_block(const QueryTask& task) { Tiles<Avx512Ops>::query_block(task); }
void backward_head(const HeadTask& task) { Tiles<Avx512Ops>::backward_head(task); }
}  // namespace

const TileFunctions* machine_functions() {
  static const TileFunctions functions{&pack_keys, &query_block, &backward_head};
  return &functions;
}

}  // namespace shardtune::kernels::bf16
