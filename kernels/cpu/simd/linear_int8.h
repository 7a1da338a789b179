// Multiplication by block-quantized weights with integer dot products.
//
// The weights' integers are used as stored. The activations are two planes of int8 (QuantizedBlock:
// 15 bits), so that a product is two 8-bit dot products, exact in int32, and the result stays
// within about 1e-4 (relative L2) of float32 arithmetic on the dequantized weights. Only the sums
// over blocks are in floating point, one fma chain in k order.
#pragma once

#include "kernels/cpu/ops.h"
#include "kernels/cpu/simd/int8_formats.h"

namespace {

using trireme::QuantFormat;
using trireme::cpu::kPrefetchBytes;
using trireme::cpu::LinearKernel;
using trireme::cpu::LinearTile;
using trireme::cpu::QuantizedBlock;

// Inlined by force: out of line, the weights of a block would travel through memory.
#define TRIREME_INLINE inline __attribute__((always_inline))

template <typename Format, typename Vector = V>
TRIREME_INLINE typename Vector::I dot(typename Vector::I acc, typename Vector::I w,
                                      const int8_t* a) {
  if constexpr (Format::kSigned) {
    return Vector::dot_signed(acc, w, a);
  } else {
    return Vector::dot(acc, w, a);
  }
}

// acc + the dot products of `Units` units. Sums of two products are added in 16 bits as long as
// they fit, and widened then: exact, and two instructions a unit instead of three.
template <typename Format, int Units, typename Vector = V>
TRIREME_INLINE typename Vector::I short_dots(typename Vector::I acc, const typename Vector::I* w,
                                             const int8_t* a) {
  constexpr int kFit = 32767 / (2 * 127 * Format::kMost);
  constexpr int kRun = kFit < Units ? kFit : Units;
  static_assert(Units % kRun == 0);
#pragma GCC unroll 8
  for (int u = 0; u < Units; u += kRun) {
    typename Vector::I sum = Vector::pairs(w[u], a + 4 * u);
#pragma GCC unroll 8
    for (int i = u + 1; i < u + kRun; ++i) {
      sum = Vector::add_short(sum, Vector::pairs(w[i], a + 4 * i));
    }
    acc = Vector::add_pairs(acc, sum);
  }
  return acc;
}

template <typename Format, int Units, int Rows, typename Vector = V>
TRIREME_INLINE void multiply_units(const typename Vector::I* w, const QuantizedBlock* x, int k,
                                   typename Vector::I* high, typename Vector::I* low) {
  if constexpr (Vector::kShortSums && !Format::kSigned) {
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      high[m] = short_dots<Format, Units>(high[m], w, x[m].high + k);
      low[m] = short_dots<Format, Units>(low[m], w, x[m].low + k);
    }
  } else {
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) {
#pragma GCC unroll 4
      for (int m = 0; m < Rows; ++m) {
        high[m] = dot<Format>(high[m], w[u], x[m].high + k + 4 * u);
        low[m] = dot<Format>(low[m], w[u], x[m].low + k + 4 * u);
      }
    }
  }
}

// acc[Rows] += w (32 k of kLanes rows) x for Rows <= 4 tokens.
template <typename Format, int Rows>
TRIREME_INLINE void multiply(const V::I (&w)[8], const V::F (&d)[Format::kScales],
                             const V::F (&min)[Format::kScales], const QuantizedBlock* x,
                             V::F* acc) {
  constexpr int kUnits = 8 / Format::kScales;
#pragma GCC unroll 2
  for (int s = 0; s < Format::kScales; ++s) {
    V::I high[Rows], low[Rows];
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      high[m] = V::zero_i();
      low[m] = V::zero_i();
      if constexpr (Format::kZeroShift != 0) {
        const int32_t sum =
            Format::kScales == 1 ? x[m].half_sum[0] + x[m].half_sum[1] : x[m].half_sum[s];
        low[m] = V::set_i(-sum * (1 << Format::kZeroShift));
      }
    }
    multiply_units<Format, kUnits, Rows>(w + s * kUnits, x, 4 * s * kUnits, high, low);
#pragma GCC unroll 4
    for (int m = 0; m < Rows; ++m) {
      const V::F sum = V::to_float(V::add_i(V::shl<7>(high[m]), low[m]));
      acc[m] = V::fma(sum, V::mul(d[s], V::set(x[m].scale)), acc[m]);
      if constexpr (Format::kMin) {
        const float x_sum =
            Format::kScales == 1 ? x[m].sum : x[m].scale * static_cast<float>(x[m].half_sum[s]);
        acc[m] = V::fma(min[s], V::set(x_sum), acc[m]);
      }
    }
  }
}

template <typename Format, int Rows, int Part>
TRIREME_INLINE void int8_parts(const Format& format, const std::byte* w, const QuantizedBlock* x,
                               V::F* acc) {
  if constexpr (Rows == 1) in_order();
  V::I quants[8];
  V::F d[Format::kScales], min[Format::kScales];
  format.template load<Part>(w, quants, d, min);
  const QuantizedBlock* part = x + Part * Rows;
#pragma GCC unroll 4
  for (int m = 0; m + 4 <= Rows; m += 4) multiply<Format, 4>(quants, d, min, part + m, acc + m);
  if constexpr (Rows % 4 != 0) {
    multiply<Format, Rows % 4>(quants, d, min, part + Rows / 4 * 4, acc + Rows / 4 * 4);
  }
  if constexpr (Part + 1 < Format::kParts) {
    int8_parts<Format, Rows, Part + 1>(format, w, x, acc);
  }
}

inline void prefetch(const std::byte* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
}

template <typename Format, int Rows, bool Ahead = true>
void int8_tile(const LinearTile& t) {
  V::F acc[Rows];
  for (int m = 0; m < Rows; ++m) acc[m] = t.first ? V::zero() : V::load(t.acc + m * kLanes);
  const std::byte* w = t.panel;
  const auto* x = reinterpret_cast<const QuantizedBlock*>(t.x);
  for (int64_t b = 0; b < t.blocks; ++b) {
    if constexpr (Rows == 1 ? Format::kCopyForOne : Format::kCopyForMany) {
      alignas(64) std::byte block[Format::kBytes];
      static_assert(Format::kBytes % (2 * kLanes) == 0);
      for (int i = 0; i < Format::kBytes; i += 2 * kLanes) {
        if (Ahead && i % 64 == 0) prefetch(w + kPrefetchBytes + i);
        __builtin_memcpy(block + i, w + i, 2 * kLanes);
      }
      int8_parts<Format, Rows, 0>(Format(block), block, x, acc);
    } else {
      for (int i = 0; Ahead && i < Format::kBytes; i += 64) prefetch(w + kPrefetchBytes + i);
      int8_parts<Format, Rows, 0>(Format(w), w, x, acc);
    }
    w += Format::kBytes;
    x += Format::kParts * Rows;
  }
  for (int m = 0; m < Rows; ++m) V::store(t.acc + m * kLanes, acc[m]);
}

template <typename Format, int Rows = V::kInt8Tile>
void run_int8(const LinearTile& t) {
  if constexpr (Rows == 1) {
    t.fetches_ahead ? int8_tile<Format, 1>(t) : int8_tile<Format, 1, false>(t);
  } else {
    if (t.rows == Rows) return int8_tile<Format, Rows>(t);
    run_int8<Format, Rows - 1>(t);
  }
}

template <typename Format>
LinearKernel int8_kernel() {
  return {kLanes, V::kInt8Tile, trireme::cpu::TileKind::kInt8, run_int8<Format>};
}

LinearKernel int8_kernel(QuantFormat format) {
  switch (format) {
    case QuantFormat::kQ4_0: return int8_kernel<FormatQ4<false>>();
    case QuantFormat::kQ4_1: return int8_kernel<FormatQ4<true>>();
    case QuantFormat::kQ5_0: return int8_kernel<FormatQ5<false>>();
    case QuantFormat::kQ5_1: return int8_kernel<FormatQ5<true>>();
    case QuantFormat::kIQ4_NL: return int8_kernel<FormatIQ4_NL>();
    case QuantFormat::kQ2_K: return int8_kernel<FormatQ2_K>();
    case QuantFormat::kQ3_K: return int8_kernel<FormatQ3_K>();
    case QuantFormat::kQ4_K: return int8_kernel<FormatQ45_K<false>>();
    case QuantFormat::kQ5_K: return int8_kernel<FormatQ45_K<true>>();
    case QuantFormat::kQ6_K: return int8_kernel<FormatQ6_K>();
    case QuantFormat::kI4x32: return int8_kernel<FormatI4<1>>();
    case QuantFormat::kI4x128: return int8_kernel<FormatI4<4>>();
    case QuantFormat::kI8x32: return int8_kernel<FormatI8<1>>();
    case QuantFormat::kI8x128: return int8_kernel<FormatI8<4>>();
    default: return int8_kernel<FormatQ8_0>();
  }
}

// Activations to QuantizedBlocks. NaN or infinity makes the whole block NaN.
void quantize(const float* x, int64_t blocks, QuantizedBlock* out, int64_t out_stride) {
  constexpr int kVectors = 32 / V::kWidth;
  for (int64_t b = 0; b < blocks; ++b, x += 32, out += out_stride) {
    V::F v[kVectors];
    V::I top = V::zero_i();
    for (int i = 0; i < kVectors; ++i) {
      v[i] = V::load(x + i * V::kWidth);
      // Magnitudes order like their bits, with NaN above everything.
      top = V::max_i(top, V::and_i(V::bits(v[i]), V::set_i(0x7fffffff)));
    }
    const float largest = __builtin_bit_cast(float, V::max_lane_i(top));
    constexpr float kMost = 127 * 128 + 63;
    if (!(largest <= 3.4028235e38f)) {
      *out = QuantizedBlock{};
      out->scale = out->sum = __builtin_nanf("");
      continue;
    }
    // A block of all but nothing counts as zero: the inverse would overflow.
    const float scale = largest > 1e-30f ? largest / kMost : 0.0f;
    const float inverse = largest > 1e-30f ? kMost / largest : 0.0f;
    int32_t half[2] = {0, 0};
    for (int i = 0; i < kVectors; ++i) {
      const V::I q = V::to_int(V::mul(v[i], V::set(inverse)));
      const V::I high = V::template sar<7>(V::add_i(q, V::set_i(64)));
      V::store_i8(out->high + i * V::kWidth, high);
      V::store_i8(out->low + i * V::kWidth, V::sub_i(q, V::template shl<7>(high)));
      half[i * V::kWidth / 16] += V::sum_i(q);
    }
    out->scale = scale;
    out->sum = scale * static_cast<float>(half[0] + half[1]);
    out->half_sum[0] = half[0];
    out->half_sum[1] = half[1];
  }
}

}  // namespace
