// Multiplication by float32, float16, bfloat16 and (block-scaled) e4m3 weights: weights widened to
// float32 (exactly) and fused multiply-adds. Included once by each instruction set's file, after
// its vec_*.h.
#pragma once

#include "kernels/cpu/ops.h"

namespace {

using trireme::cpu::kPrefetchBytes;
using trireme::cpu::LinearKernel;
using trireme::cpu::LinearTile;

// A row's part of a packed block, and its columns in float32.
struct LoadF32 {
  static constexpr int kBytes = 4, kColumns = 1;
  static V::F load(const std::byte* p, int /*column*/) {
    return V::load(reinterpret_cast<const float*>(p));
  }
};
struct LoadF16 {
  static constexpr int kBytes = 2, kColumns = 1;
  static V::F load(const std::byte* p, int /*column*/) { return V::load_f16(p); }
};
// bf16 are the upper halves of float32.
struct LoadBF16 {
  static constexpr int kBytes = 4, kColumns = 2;
  static V::F load(const std::byte* p, int column) {
    const V::I pair = V::load_i(p);
    return V::from_bits(column == 0 ? V::shl<16>(pair) : V::and_i(pair, V::set_i(-0x10000)));
  }
};

// Panel [k block][panel rows], x [k][Rows]. Each accumulator is one chain of fma over k.
template <typename Load, int Rows>
void plain_tile(const LinearTile& t) {
  constexpr int kVectors = V::kPlainVectors;
  constexpr int kStep = kVectors * V::kWidth * Load::kBytes;
  V::F acc[Rows][kVectors];
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < kVectors; ++n) {
      float* from = t.acc + (m * kVectors + n) * V::kWidth;
      acc[m][n] = t.first ? V::zero() : V::load(from);
    }
  }
  const std::byte* w = t.panel;
  const float* x = reinterpret_cast<const float*>(t.x);
  for (int64_t k = 0; k < t.blocks; ++k, w += kStep, x += Load::kColumns * Rows) {
    for (int i = 0; i < kStep; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetchBytes + i, _MM_HINT_T0);
    }
    // Not a loop over the columns: of that GCC 12 keeps the sums in memory.
    const auto multiply = [&](int column) __attribute__((always_inline)) {
      V::F wv[kVectors];
      for (int n = 0; n < kVectors; ++n) {
        wv[n] = Load::load(w + n * V::kWidth * Load::kBytes, column);
      }
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const V::F xv = V::set(x[column * Rows + m]);
#pragma GCC unroll 4
        for (int n = 0; n < kVectors; ++n) acc[m][n] = V::fma(wv[n], xv, acc[m][n]);
      }
    };
    multiply(0);
    if constexpr (Load::kColumns == 2) multiply(1);
  }
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < kVectors; ++n) {
      V::store(t.acc + (m * kVectors + n) * V::kWidth, acc[m][n]);
    }
  }
}

// e4m3 in blocks of Elements: panel [block]{[k][panel rows] bytes, f32 scales [panel rows]}. Bytes
// become halves of 2^-8 of their value (the exponent's bias is 7 there and 15 here), exactly; the
// weight that is multiplied is scale * value, rounded once.
template <int Elements, int Rows>
void e4m3_tile(const LinearTile& t) {
  constexpr int kVectors = V::kPlainVectors;
  constexpr int kStep = kVectors * V::kWidth;
  V::F acc[Rows][kVectors];
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < kVectors; ++n) {
      acc[m][n] = t.first ? V::zero() : V::load(t.acc + (m * kVectors + n) * V::kWidth);
    }
  }
  const std::byte* w = t.panel;
  const float* x = reinterpret_cast<const float*>(t.x);
  for (int64_t b = 0; b < t.blocks; ++b, w += (Elements + 4) * kStep) {
    V::F scale[kVectors];
    for (int n = 0; n < kVectors; ++n) {
      const std::byte* at = w + Elements * kStep + n * V::kWidth * 4;
      scale[n] = V::mul(V::load(reinterpret_cast<const float*>(at)), V::set(256.0f));
    }
    for (int k = 0; k < Elements; ++k, x += Rows) {
      const std::byte* from = w + k * kStep;
      if (k * kStep % 64 == 0) {
        _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T0);
      }
      V::F wv[kVectors];
      for (int n = 0; n < kVectors; ++n) {
        wv[n] = V::mul(V::load_e4m3(from + n * V::kWidth), scale[n]);
      }
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
        const V::F xv = V::set(x[m]);
#pragma GCC unroll 4
        for (int n = 0; n < kVectors; ++n) acc[m][n] = V::fma(wv[n], xv, acc[m][n]);
      }
    }
  }
  for (int m = 0; m < Rows; ++m) {
    for (int n = 0; n < kVectors; ++n) {
      V::store(t.acc + (m * kVectors + n) * V::kWidth, acc[m][n]);
    }
  }
}

template <typename Load>
struct PlainTile {
  template <int Rows>
  static void run(const LinearTile& t) {
    plain_tile<Load, Rows>(t);
  }
};
template <int Elements>
struct E4m3Tile {
  template <int Rows>
  static void run(const LinearTile& t) {
    e4m3_tile<Elements, Rows>(t);
  }
};

template <typename Tile, int Rows>
void run_plain(const LinearTile& t) {
  if constexpr (Rows == 1) {
    Tile::template run<1>(t);
  } else {
    if (t.rows == Rows) return Tile::template run<Rows>(t);
    run_plain<Tile, Rows - 1>(t);
  }
}

template <typename Tile, int Rows = V::kPlainTile>
LinearKernel plain_kernel() {
  return {V::kPlainVectors * V::kWidth, Rows, trireme::cpu::TileKind::kF32, run_plain<Tile, Rows>};
}

LinearKernel plain_kernel(trireme::QuantFormat format) {
  switch (format) {
    case trireme::QuantFormat::kF16: return plain_kernel<PlainTile<LoadF16>>();
    case trireme::QuantFormat::kBF16: return plain_kernel<PlainTile<LoadBF16>, V::kPairTile>();
    case trireme::QuantFormat::kF8x32: return plain_kernel<E4m3Tile<32>>();
    case trireme::QuantFormat::kF8x128: return plain_kernel<E4m3Tile<128>>();
    default: return plain_kernel<PlainTile<LoadF32>>();
  }
}

}  // namespace
