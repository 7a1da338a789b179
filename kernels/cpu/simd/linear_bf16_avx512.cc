// Multiplication by bf16 weights of activations rounded to bf16, by dot products of pairs
// (docs/adr/0021). vdpbf16ps takes subnormal numbers as zero, and rounds to nearest even whatever
// the control register says.
#include "kernels/cpu/simd/vec_avx512.h"

#include "kernels/cpu/simd/tables.h"

namespace trireme::cpu {
namespace {

// Register blocking: rows x vectors of accumulators.
constexpr int kRows = 12;
constexpr int kVectors = 2;
constexpr int kPanelRows = kVectors * V::kWidth;

__m512bh pairs(V::I bits) { return __builtin_bit_cast(__m512bh, bits); }

// Panel [k pair][panel rows], x [k pair][Rows], both of two bf16. Each accumulator is one chain of
// dot products over k.
template <int Rows>
void dot_tile(const LinearTile& t) {
  V::F acc[Rows][kVectors];
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < kVectors; ++n) {
      acc[m][n] = t.first ? V::zero() : V::load(t.acc + (m * kVectors + n) * V::kWidth);
    }
  }
  const std::byte* w = t.panel;
  const std::byte* x = t.x;
  for (int64_t k = 0; k < t.blocks; ++k, w += kPanelRows * 4, x += Rows * 4) {
    for (int i = 0; i < kPanelRows * 4; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes + i, _MM_HINT_T0);
    }
    __m512bh wv[kVectors];
    for (int n = 0; n < kVectors; ++n) wv[n] = pairs(V::load_i(w + n * V::kWidth * 4));
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, x + m * 4, 4);
      const __m512bh xv = pairs(V::set_i(pair));
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], wv[n], xv);
    }
  }
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < kVectors; ++n) {
      V::store(t.acc + (m * kVectors + n) * V::kWidth, acc[m][n]);
    }
  }
}

template <int Rows = kRows>
void run_dots(const LinearTile& t) {
  if constexpr (Rows == 1) {
    dot_tile<1>(t);
  } else {
    if (t.rows == Rows) return dot_tile<Rows>(t);
    run_dots<Rows - 1>(t);
  }
}

}  // namespace

LinearKernel linear_bf16_avx512() { return {kPanelRows, kRows, TileKind::kBF16, run_dots}; }

// 32 columns at a time: 16 pairs of every row become 16 lanes of rows. The conversion rounds to
// nearest even and keeps NaN; subnormal numbers become zero, which the dot product takes them for.
void tile_bf16_avx512(const float* x, int64_t stride, int rows, int64_t cols, std::byte* out) {
  const auto load = [&](const float* from, int64_t left) {
    if (left >= V::kWidth) return V::load(from);
    return left <= 0 ? V::zero() : V::load(from, left);
  };
  for (int64_t k = 0; k < cols; k += 32) {
    const int64_t left = cols - k;
    V::F r[16];
    for (int m = 0; m < 16; ++m) {
      if (m >= rows) {
        r[m] = V::zero();
        continue;
      }
      const float* from = x + m * stride + k;
      r[m] = __builtin_bit_cast(V::F,
                                _mm512_cvtne2ps_pbh(load(from + 16, left - 16), load(from, left)));
    }
    auto* to = reinterpret_cast<float*>(out) + k / 2 * rows;
    const int64_t count = left < 32 ? left / 2 : 16;
    if (rows == 1) {
      V::store(to, r[0], count);
      continue;
    }
    V::transpose(r);
    for (int64_t j = 0; j < count; ++j) V::store(to + j * rows, r[j], rows);
  }
}

// Twelve independent chains of dot products; returns the floating-point operations done.
double bf16_operations_avx512(int64_t repeats) {
  V::F acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = V::set(static_cast<float>(i));
  V::I w = V::set_i(0x3f803f80), x = V::set_i(0x3c003c00);  // 1 and 1/128
  for (int64_t r = 0; r < repeats; ++r) {
    asm volatile("" : "+v"(w), "+v"(x));
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], pairs(w), pairs(x));
  }
  for (int i = 0; i < 12; ++i) asm volatile("" : : "v"(acc[i]));
  return 2.0 * 12 * 2 * V::kWidth * static_cast<double>(repeats);
}

}  // namespace trireme::cpu
