// 8 lanes of AVX2, FMA and F16C behind the few names that the kernels of this folder use. Internal
// linkage throughout (kernels/cpu/ops.h says why).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct V {
  static constexpr int kWidth = 8;
  // maddubs saturates: dot() takes u8 below 128 only, dot_signed() takes s8 x s8.
  static constexpr bool kUnsignedDot = false;
  static constexpr bool kShortSums = true;  // has pairs(), add_short(), add_pairs()
  static constexpr int kPlainVectors = 2;
  static constexpr int kPlainTile = 6;
  static constexpr int kPairTile = 5;  // of bf16, two columns at a time: these take more registers
  static constexpr int kInt8Tile = 4;
  static constexpr int kGemmVectors = 2;
  using F = __m256;
  using I = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static I iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static I mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), iota());
  }
  // The first n < 8 lanes; the rest are zero.
  static F load(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store(float* p, F x, int64_t n) { _mm256_maskstore_ps(p, mask(n), x); }
  static F widen_f16(__m128i half) { return _mm256_cvtph_ps(half); }
  static F widen_bf16(__m128i half) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static __m128i load_half(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static __m128i load_half(const void* p, int64_t n) {
    uint16_t lanes[8] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = static_cast<const uint16_t*>(p)[i];
    return load_half(lanes);
  }
  static void store_half(void* p, __m128i x, int64_t n) {
    if (n == 8) return _mm_storeu_si128(static_cast<__m128i*>(p), x);
    uint16_t lanes[8];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lanes), x);
    for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(p)[i] = lanes[i];
  }
  static F load_f16(const void* p) { return widen_f16(load_half(p)); }
  static F load_bf16(const void* p) { return widen_bf16(load_half(p)); }
  // 2^-8 of so many e4m3.
  static F load_e4m3(const void* p) {
    const __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
    const __m128i size = _mm_and_si128(_mm_slli_epi16(x, 7), _mm_set1_epi16(0x3f80));
    const __m128i sign = _mm_and_si128(_mm_slli_epi16(x, 8), _mm_set1_epi16(-0x8000));
    return widen_f16(_mm_or_si128(size, sign));
  }
  static F load_f16(const void* p, int64_t n) { return widen_f16(load_half(p, n)); }
  static F load_bf16(const void* p, int64_t n) { return widen_bf16(load_half(p, n)); }
  static void store_f16(void* p, F x, int64_t n) {
    store_half(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT), n);
  }
  static void store_bf16(void* p, F x, int64_t n) {
    const I bits = _mm256_castps_si256(x);
    const I lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), lsb);
    const I quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const I value = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    store_half(p, narrow16(value), n);
  }
  // The low 16 bits of each lane, all below 65536.
  static __m128i narrow16(I x) {
    const I packed = _mm256_packus_epi32(x, x);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static float sum(F a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static float max_lane(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  // x 2^n for whole n in [-252, 254], in two halves so that each is a normal number.
  static F scale2(F x, F n) {
    const I whole = _mm256_cvtps_epi32(n);
    const I half = _mm256_srai_epi32(whole, 1);
    return mul(mul(x, power2(half)), power2(_mm256_sub_epi32(whole, half)));
  }
  static F power2(I n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  // a where x < y, else b.
  static F select_less(F x, F y, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
  }
  // x where low < first + lane <= high, else other.
  static F select_between(int first, int low, int high, F x, F other) {
    const I lane = _mm256_add_epi32(_mm256_set1_epi32(first), iota());
    const I below = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(low));
    const I above = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(high));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_andnot_si256(above, below)));
  }

  static I zero_i() { return _mm256_setzero_si256(); }
  static I set_i(int32_t x) { return _mm256_set1_epi32(x); }
  static I load_i(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static I and_i(I a, I b) { return _mm256_and_si256(a, b); }
  static I or_i(I a, I b) { return _mm256_or_si256(a, b); }
  static I xor_i(I a, I b) { return _mm256_xor_si256(a, b); }
  static I add_i(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_i(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I max_i(I a, I b) { return _mm256_max_epi32(a, b); }
  static int32_t sum_i(I a) {
    int32_t lanes[8], total = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), a);
    for (const int32_t lane : lanes) total += lane;
    return total;
  }
  static int32_t max_lane_i(I a) {
    int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), a);
    int32_t top = lanes[0];
    for (const int32_t lane : lanes) top = lane > top ? lane : top;
    return top;
  }
  template <int N>
  static I shl(I a) {
    return _mm256_slli_epi32(a, N);
  }
  template <int N>
  static I shr16(I a) {
    return _mm256_srli_epi16(a, N);
  }
  template <int N>
  static I sar(I a) {
    return _mm256_srai_epi32(a, N);
  }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static I to_int(F a) { return _mm256_cvtps_epi32(a); }
  static I bits(F a) { return _mm256_castps_si256(a); }
  static F from_bits(I a) { return _mm256_castsi256_ps(a); }
  // One int8 a lane.
  static F load_i8(const void* p) {
    return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  // One uint8 a lane.
  static F load_u8(const void* p) {
    return to_float(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  }
  static void store_i(void* p, I a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
  // Of every byte of `at`, below 16: that one of the 16 bytes at `table`.
  static I lookup(const int8_t* table, I at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), at);
  }
  static void store_i8(int8_t* p, I a) {
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static I broadcast4(const int8_t* a) {
    int32_t four;
    __builtin_memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
  }
  static I add_pairs(I acc, I words) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
  }
  // acc + the dot product of 4 unsigned w and 4 signed a in every lane; `a` is one lane for all.
  static I dot(I acc, I w, const int8_t* a) {
    return add_pairs(acc, _mm256_maddubs_epi16(w, broadcast4(a)));
  }
  // Its halves: sums of two products, in 16 bits; add_pairs() widens them.
  static I pairs(I w, const int8_t* a) { return _mm256_maddubs_epi16(w, broadcast4(a)); }
  static I add_short(I a, I b) { return _mm256_add_epi16(a, b); }
  static I dot_signed(I acc, I w, const int8_t* a) {
    return add_pairs(acc,
                     _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(broadcast4(a), w)));
  }

  // Rows become columns.
  static void transpose(F (&r)[8]) {
    F t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int h = 0; h < 2; ++h) {
        const __m256d a = _mm256_castps_pd(t[i + h]);
        const __m256d b = _mm256_castps_pd(t[i + 2 + h]);
        r[i + 2 * h] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
        r[i + 2 * h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
      }
    }
    for (int c = 0; c < 4; ++c) {
      const F low = _mm256_permute2f128_ps(r[c], r[4 + c], 0x20);
      r[4 + c] = _mm256_permute2f128_ps(r[c], r[4 + c], 0x31);
      r[c] = low;
    }
  }
};

}  // namespace
