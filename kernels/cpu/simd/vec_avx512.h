// 16 lanes of AVX-512 (F, BW, DQ, VL, VNNI) behind the few names that the kernels of this folder
// use. Internal linkage throughout (kernels/cpu/ops.h says why).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct V {
  static constexpr int kWidth = 16;
  static constexpr bool kUnsignedDot = true;  // dot() takes any u8 x s8
  static constexpr bool kShortSums = false;
  // Register blocking: rows x vectors of accumulators.
  static constexpr int kPlainVectors = 2;  // of weight rows in a plain panel
  static constexpr int kPlainTile = 12;
  static constexpr int kPairTile = 12;  // of bf16, two columns at a time
  static constexpr int kInt8Tile = 8;
  static constexpr int kGemmRows = 4;
  static constexpr int kGemmVectors = 4;
  using F = __m512;
  using I = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  // The first n < 16 lanes; the rest are zero.
  static F load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), x); }
  static F load_f16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static F load_bf16(const void* p) {
    const __m256i half = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  // 2^-8 of so many e4m3.
  static F load_e4m3(const void* p) {
    const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    const __m256i size = _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16(0x3f80));
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi16(x, 8), _mm256_set1_epi16(-0x8000));
    return _mm512_cvtph_ps(_mm256_or_si256(size, sign));
  }
  static F load_f16(const void* p, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  static F load_bf16(const void* p, int64_t n) {
    const __m256i half = _mm256_maskz_loadu_epi16(mask(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_f16(void* p, F x, int64_t n) {
    _mm256_mask_storeu_epi16(p, mask(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  // Not vcvtneps2bf16, which flushes subnormals.
  static void store_bf16(void* p, F x, int64_t n) {
    const I bits = _mm512_castps_si512(x);
    const I lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), lsb);
    const I quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const I value = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    _mm256_mask_storeu_epi16(p, mask(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(value, 16)));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float max_lane(F a) { return _mm512_reduce_max_ps(a); }
  // x 2^n for whole n; zero or infinity beyond the range.
  static F scale2(F x, F n) { return _mm512_scalef_ps(x, n); }
  // a where x < y, else b.
  static F select_less(F x, F y, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
  }
  // x where low < first + lane <= high, else other.
  static F select_between(int first, int low, int high, F x, F other) {
    const I lane =
        _mm512_add_epi32(_mm512_set1_epi32(first),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __mmask16 keep = _mm512_cmpgt_epi32_mask(lane, _mm512_set1_epi32(low)) &
                           _mm512_cmple_epi32_mask(lane, _mm512_set1_epi32(high));
    return _mm512_mask_blend_ps(keep, other, x);
  }

  static I zero_i() { return _mm512_setzero_si512(); }
  static I set_i(int32_t x) { return _mm512_set1_epi32(x); }
  static I load_i(const void* p) { return _mm512_loadu_si512(p); }
  static I and_i(I a, I b) { return _mm512_and_si512(a, b); }
  static I or_i(I a, I b) { return _mm512_or_si512(a, b); }
  static I xor_i(I a, I b) { return _mm512_xor_si512(a, b); }
  static I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_i(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I max_i(I a, I b) { return _mm512_max_epi32(a, b); }
  static int32_t sum_i(I a) { return _mm512_reduce_add_epi32(a); }
  static int32_t max_lane_i(I a) { return _mm512_reduce_max_epi32(a); }
  template <int N>
  static I shl(I a) {
    return _mm512_slli_epi32(a, N);
  }
  template <int N>
  static I shr16(I a) {
    return _mm512_srli_epi16(a, N);
  }
  template <int N>
  static I sar(I a) {
    return _mm512_srai_epi32(a, N);
  }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static I to_int(F a) { return _mm512_cvtps_epi32(a); }
  static I bits(F a) { return _mm512_castps_si512(a); }
  static F from_bits(I a) { return _mm512_castsi512_ps(a); }
  // One int8 a lane.
  static F load_i8(const void* p) {
    return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  // One uint8 a lane.
  static F load_u8(const void* p) {
    return to_float(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static void store_i(void* p, I a) { _mm512_storeu_si512(p, a); }
  // Of every byte of `at`, below 16: that one of the 16 bytes at `table`.
  static I lookup(const int8_t* table, I at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), at);
  }
  static void store_i8(int8_t* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }
  // acc + the dot product of 4 unsigned w and 4 signed a in every lane; `a` is one lane for all.
  static I dot(I acc, I w, const int8_t* a) {
    int32_t four;
    __builtin_memcpy(&four, a, 4);
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(four));
  }

  // Rows become columns.
  static void transpose(F (&r)[16]) {
    F t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int h = 0; h < 2; ++h) {
        const __m512d a = _mm512_castps_pd(t[i + h]);
        const __m512d b = _mm512_castps_pd(t[i + 2 + h]);
        r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
    }
    // r[4 g + c] holds, in its 128-bit lane l, column 4 l + c of rows 4 g .. 4 g + 3.
    for (int c = 0; c < 4; ++c) {
      t[c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);
      t[4 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
      t[8 + c] = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
      t[12 + c] = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    }
    for (int c = 0; c < 4; ++c) {
      r[c] = _mm512_shuffle_f32x4(t[c], t[4 + c], 0x88);
      r[8 + c] = _mm512_shuffle_f32x4(t[c], t[4 + c], 0xdd);
      r[4 + c] = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0x88);
      r[12 + c] = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0xdd);
    }
  }
};

}  // namespace
