// How the quantized formats' packed blocks become operands of 8-bit dot products.
//
// A format is made of a block of kLanes rows, kBytes in all (its constructor unpacks what the
// block's parts share), and has `load<Part>`: the quants of the part's 32 consecutive k as w[8],
// one unit of 4 a lane, unsigned with a zero point of 2^kZeroShift (no zero point if 0) or signed
// (kSigned), at most kMost, and the rows' scales d of each run of 32 / kScales elements; kMin: plus
// a minimum. packing.cc says in which order a block's sections lie. kCopyForOne, kCopyForMany: for
// one row of x, or for several, the block is copied first, which is faster where units lie across
// cache lines (one row: 1.1 to 1.3 times) or parts take long (several: 1.1 times with AVX-512; with
// AVX2 it would take half as long again).
#pragma once

#include "kernels/cpu/ops.h"

namespace {

constexpr int kLanes = V::kWidth;    // rows of a panel
constexpr int kUnit = 4 * kLanes;    // bytes of one unit of 4 quants for all rows
constexpr int kHalves = 2 * kLanes;  // bytes of one f16 for all rows

// Bits at `From` of every byte moved to `To`; what crosses a byte's edge must be masked away.
template <int From, int To>
V::I move_bits(V::I x) {
  if constexpr (From == To) {
    return x;
  } else if constexpr (From < To) {
    return V::template shl<To - From>(x);
  } else {
    return V::template shr16<From - To>(x);
  }
}

// Bits [From, From + count of ones in Mask) of every byte, at the place of Mask.
template <int From, int To>
V::I bits_at(V::I x, int32_t mask) {
  return V::and_i(move_bits<From, To>(x), V::set_i(mask));
}

constexpr int32_t kLow2 = 0x03030303, kLow4 = 0x0f0f0f0f, kLow6 = 0x3f3f3f3f;
constexpr int32_t kBit2 = 0x04040404, kBit4 = 0x10101010, kBits45 = 0x30303030;

// The compiler moves no load across it.
inline void in_order() { asm volatile("" ::: "memory"); }

// 32 nibbles in 4 units: the low ones first.
inline void load_nibbles(const std::byte* p, V::I (&w)[8]) {
  for (int g = 0; g < 4; ++g) {
    const V::I q = V::load_i(p + g * kUnit);
    w[g] = bits_at<0, 0>(q, kLow4);
    w[g + 4] = bits_at<4, 0>(q, kLow4);
  }
}

struct FormatQ8_0 {
  static constexpr int kParts = 1;
  static constexpr bool kCopyForOne = kLanes == 16, kCopyForMany = false;
  static constexpr int kBytes = 34 * kLanes;
  static constexpr int kScales = 1;
  static constexpr int kZeroShift = V::kUnsignedDot ? 7 : 0;
  static constexpr bool kMin = false;
  static constexpr bool kSigned = !V::kUnsignedDot;
  static constexpr int kMost = 127;
  explicit FormatQ8_0(const std::byte*) {}
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[1], V::F (&)[1]) const {
    for (int g = 0; g < 8; ++g) {
      w[g] = V::load_i(p + g * kUnit);
      if constexpr (V::kUnsignedDot) w[g] = V::xor_i(w[g], V::set_i(0x80808080));
    }
    d[0] = V::load_f16(p + 8 * kUnit);
  }
};

template <bool Min>
struct FormatQ4 {
  static constexpr int kParts = 1;
  static constexpr bool kCopyForOne = false, kCopyForMany = false;
  static constexpr int kBytes = (Min ? 20 : 18) * kLanes;
  static constexpr int kScales = 1;
  static constexpr int kZeroShift = Min ? 0 : 3;
  static constexpr bool kMin = Min;
  static constexpr bool kSigned = false;
  static constexpr int kMost = 15;
  explicit FormatQ4(const std::byte*) {}
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[1], V::F (&min)[1]) const {
    load_nibbles(p, w);
    d[0] = V::load_f16(p + 4 * kUnit);
    if constexpr (Min) min[0] = V::load_f16(p + 4 * kUnit + kHalves);
  }
};

// As Q4, and one unit that has the fifth bits of group g of 4 elements at bit g of its bytes.
template <bool Min>
struct FormatQ5 {
  static constexpr int kParts = 1;
  static constexpr bool kCopyForOne = false, kCopyForMany = false;
  static constexpr int kBytes = (Min ? 24 : 22) * kLanes;
  static constexpr int kScales = 1;
  static constexpr int kZeroShift = Min ? 0 : 4;
  static constexpr bool kMin = Min;
  static constexpr bool kSigned = false;
  static constexpr int kMost = 31;
  explicit FormatQ5(const std::byte*) {}
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[1], V::F (&min)[1]) const {
    load_nibbles(p, w);
    add_high<0>(V::load_i(p + 4 * kUnit), w);
    d[0] = V::load_f16(p + 5 * kUnit);
    if constexpr (Min) min[0] = V::load_f16(p + 5 * kUnit + kHalves);
  }

 private:
  template <int G>
  static void add_high(V::I high, V::I (&w)[8]) {
    w[G] = V::or_i(w[G], bits_at<G, 4>(high, kBit4));
    if constexpr (G < 7) add_high<G + 1>(high, w);
  }
};

struct FormatIQ4_NL {
  static constexpr int kParts = 1;
  static constexpr bool kCopyForOne = false, kCopyForMany = false;
  static constexpr int kBytes = 18 * kLanes;
  static constexpr int kScales = 1;
  static constexpr int kZeroShift = V::kUnsignedDot ? 7 : 0;
  static constexpr bool kMin = false;
  static constexpr bool kSigned = !V::kUnsignedDot;
  static constexpr int kMost = 127;
  explicit FormatIQ4_NL(const std::byte*) {}
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[1], V::F (&)[1]) const {
    load_nibbles(p, w);
    for (int g = 0; g < 8; ++g) {
      w[g] = V::lookup(trireme::kIq4Values, w[g]);
      if constexpr (V::kUnsignedDot) w[g] = V::xor_i(w[g], V::set_i(0x80808080));
    }
    d[0] = V::load_f16(p + 4 * kUnit);
  }
};

// 256 elements in 8 parts of 32: {scale, minimum} nibbles [16][row], f16 scale and minimum [row],
// two bits [16 units].
struct FormatQ2_K {
  static constexpr int kParts = 8;
  static constexpr bool kCopyForOne = false, kCopyForMany = kLanes == 16;
  static constexpr int kBytes = 84 * kLanes;
  static constexpr int kScales = 2;
  static constexpr int kZeroShift = 0;
  static constexpr bool kMin = true;
  static constexpr bool kSigned = false;
  static constexpr int kMost = 3;
  explicit FormatQ2_K(const std::byte* p) {
    for (int i = 0; i < 4; ++i) {
      const V::I both = V::load_i(p + i * kUnit);
      V::store_i(scales + i * kUnit, bits_at<0, 0>(both, kLow4));
      V::store_i(mins + i * kUnit, bits_at<4, 0>(both, kLow4));
    }
    super = V::load_f16(p + 16 * kLanes);
    super_min = V::sub(V::zero(), V::load_f16(p + 16 * kLanes + kHalves));
  }
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[2], V::F (&min)[2]) const {
    for (int g = 0; g < 8; ++g) {
      w[g] = bits_at<Part % 4 * 2, 0>(V::load_i(p + (5 + Part / 4 * 8 + g) * kUnit), kLow2);
    }
    for (int s = 0; s < 2; ++s) {
      d[s] = V::mul(super, V::load_u8(scales + (2 * Part + s) * kLanes));
      min[s] = V::mul(super_min, V::load_u8(mins + (2 * Part + s) * kLanes));
    }
  }

 private:
  alignas(64) std::byte scales[16 * kLanes];
  alignas(64) std::byte mins[16 * kLanes];
  V::F super, super_min;
};

// 12 bytes of scales [12][row], f16 [row], third bits [8 units], two bits [16 units].
struct FormatQ3_K {
  static constexpr int kParts = 8;
  static constexpr bool kCopyForOne = false, kCopyForMany = kLanes == 16;
  static constexpr int kBytes = 110 * kLanes;
  static constexpr int kScales = 2;
  static constexpr int kZeroShift = 2;
  static constexpr bool kMin = false;
  static constexpr bool kSigned = false;
  static constexpr int kMost = 7;
  explicit FormatQ3_K(const std::byte* p) {
    const V::I a = V::load_i(p), b = V::load_i(p + kUnit), high = V::load_i(p + 2 * kUnit);
    V::store_i(scales, V::or_i(bits_at<0, 0>(a, kLow4), bits_at<0, 4>(high, kBits45)));
    V::store_i(scales + kUnit, V::or_i(bits_at<0, 0>(b, kLow4), bits_at<2, 4>(high, kBits45)));
    V::store_i(scales + 2 * kUnit, V::or_i(bits_at<4, 0>(a, kLow4), bits_at<4, 4>(high, kBits45)));
    V::store_i(scales + 3 * kUnit, V::or_i(bits_at<4, 0>(b, kLow4), bits_at<6, 4>(high, kBits45)));
    super = V::load_f16(p + 12 * kLanes);
  }
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[2], V::F (&)[2]) const {
    const std::byte* high = p + 14 * kLanes;
    const std::byte* low = high + (8 + Part / 4 * 8) * kUnit;
    for (int g = 0; g < 8; ++g) w[g] = V::load_i(high + g * kUnit);
    in_order();
    for (int g = 0; g < 8; ++g) {
      w[g] = V::or_i(bits_at<Part % 4 * 2, 0>(V::load_i(low + g * kUnit), kLow2),
                     bits_at<Part, 2>(w[g], kBit2));
    }
    for (int s = 0; s < 2; ++s) {
      const V::F scale = V::load_u8(scales + (2 * Part + s) * kLanes);
      d[s] = V::mul(super, V::sub(scale, V::set(32.0f)));
    }
  }

 private:
  alignas(64) std::byte scales[16 * kLanes];
  V::F super;
};

// 12 bytes of scales and minimums [12][row], f16 scale and minimum [row], with High the fifth bits
// [8 units], nibbles [32 units].
template <bool High>
struct FormatQ45_K {
  static constexpr int kParts = 8;
  static constexpr bool kCopyForOne = false, kCopyForMany = kLanes == 16;
  static constexpr int kBytes = (High ? 176 : 144) * kLanes;
  static constexpr int kScales = 1;
  static constexpr int kZeroShift = 0;
  static constexpr bool kMin = true;
  static constexpr bool kSigned = false;
  static constexpr int kMost = High ? 31 : 15;
  explicit FormatQ45_K(const std::byte* p) {
    const V::I a = V::load_i(p), b = V::load_i(p + kUnit), c = V::load_i(p + 2 * kUnit);
    V::store_i(scales, bits_at<0, 0>(a, kLow6));
    V::store_i(mins, bits_at<0, 0>(b, kLow6));
    V::store_i(scales + kUnit, V::or_i(bits_at<0, 0>(c, kLow4), bits_at<6, 4>(a, kBits45)));
    V::store_i(mins + kUnit, V::or_i(bits_at<4, 0>(c, kLow4), bits_at<6, 4>(b, kBits45)));
    super = V::load_f16(p + 12 * kLanes);
    super_min = V::sub(V::zero(), V::load_f16(p + 12 * kLanes + kHalves));
  }
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[1], V::F (&min)[1]) const {
    const std::byte* high = p + 4 * kUnit;
    const std::byte* nibbles = high + ((High ? 8 : 0) + Part / 2 * 8) * kUnit;
    if constexpr (High) {
      for (int g = 0; g < 8; ++g) w[g] = V::load_i(high + g * kUnit);
      in_order();
    }
    for (int g = 0; g < 8; ++g) {
      const V::I low = bits_at<Part % 2 * 4, 0>(V::load_i(nibbles + g * kUnit), kLow4);
      w[g] = High ? V::or_i(low, bits_at<Part, 4>(w[g], kBit4)) : low;
    }
    d[0] = V::mul(super, V::load_u8(scales + Part * kLanes));
    min[0] = V::mul(super_min, V::load_u8(mins + Part * kLanes));
  }

 private:
  alignas(64) std::byte scales[8 * kLanes];
  alignas(64) std::byte mins[8 * kLanes];
  V::F super, super_min;
};

// int8 scales [16][row], f16 [row]; then of each half 2 high bits [8 units], low nibbles [16
// units].
struct FormatQ6_K {
  static constexpr int kParts = 8;
  static constexpr bool kCopyForOne = kLanes == 16, kCopyForMany = kLanes == 16;
  static constexpr int kBytes = 210 * kLanes;
  static constexpr int kScales = 2;
  static constexpr int kZeroShift = 5;
  static constexpr bool kMin = false;
  static constexpr bool kSigned = false;
  static constexpr int kMost = 63;
  explicit FormatQ6_K(const std::byte*) {}
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[2], V::F (&)[2]) const {
    constexpr int kHalf = Part / 4, kRun = Part % 4;
    const std::byte* high = p + 18 * kLanes + kHalf * 24 * kUnit;
    const std::byte* low = high + (8 + kRun % 2 * 8) * kUnit;
    for (int g = 0; g < 8; ++g) w[g] = V::load_i(high + g * kUnit);
    in_order();
    for (int g = 0; g < 8; ++g) {
      w[g] = V::or_i(bits_at<kRun / 2 * 4, 0>(V::load_i(low + g * kUnit), kLow4),
                     bits_at<kRun * 2, 4>(w[g], kBits45));
    }
    const V::F super = V::load_f16(p + 16 * kLanes);
    for (int s = 0; s < 2; ++s) {
      d[s] = V::mul(super, V::load_i8(p + (2 * Part + s) * kLanes));
    }
  }
};

// 32 elements a part: nibbles, f32 scale [row], u8 zero point [row]; w = d q - d zero.
template <int Parts>
struct FormatI4 {
  static constexpr int kParts = Parts;
  static constexpr bool kCopyForOne = false, kCopyForMany = false;
  static constexpr int kBytes = (16 * Parts + 5) * kLanes;
  static constexpr int kScales = 1;
  static constexpr int kZeroShift = 0;
  static constexpr bool kMin = true;
  static constexpr bool kSigned = false;
  static constexpr int kMost = 15;
  explicit FormatI4(const std::byte* p) {
    const std::byte* packed = p + 4 * Parts * kUnit;
    scale = V::load(reinterpret_cast<const float*>(packed));
    lowest = V::sub(V::zero(), V::mul(scale, V::load_u8(packed + kUnit)));
  }
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[1], V::F (&min)[1]) const {
    load_nibbles(p + 4 * Part * kUnit, w);
    d[0] = scale;
    min[0] = lowest;
  }

 private:
  V::F scale, lowest;
};

// 32 elements a part: int8, f32 scale [row].
template <int Parts>
struct FormatI8 {
  static constexpr int kParts = Parts;
  static constexpr bool kCopyForOne = false, kCopyForMany = false;
  static constexpr int kBytes = (32 * Parts + 4) * kLanes;
  static constexpr int kScales = 1;
  static constexpr int kZeroShift = V::kUnsignedDot ? 7 : 0;
  static constexpr bool kMin = false;
  static constexpr bool kSigned = !V::kUnsignedDot;
  static constexpr int kMost = 127;
  explicit FormatI8(const std::byte* p)
      : scale(V::load(reinterpret_cast<const float*>(p + 8 * Parts * kUnit))) {}
  template <int Part>
  void load(const std::byte* p, V::I (&w)[8], V::F (&d)[1], V::F (&)[1]) const {
    for (int g = 0; g < 8; ++g) {
      w[g] = V::load_i(p + (8 * Part + g) * kUnit);
      if constexpr (V::kUnsignedDot) w[g] = V::xor_i(w[g], V::set_i(0x80808080));
    }
    d[0] = scale;
  }

 private:
  V::F scale;
};

}  // namespace
