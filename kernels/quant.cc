#include "kernels/quant.h"

#include <cmath>
#include <cstring>
#include <iterator>

#include "base/dtype.h"
#include "base/error.h"

namespace trireme {
namespace {

// In the order of QuantFormat.
constexpr QuantTraits kTraits[] = {
    {"F32", 1, 4, 0, -1, true},         {"F16", 1, 2, 0, -1, false},
    {"BF16", 1, 2, 0, -1, false},       {"Q8_0", 32, 34, 0, -1, false},
    {"Q4_0", 32, 18, 0, -1, false},     {"Q4_1", 32, 20, 0, 2, false},
    {"Q5_0", 32, 22, 0, -1, false},     {"Q5_1", 32, 24, 0, 2, false},
    {"IQ4_NL", 32, 18, 0, -1, false},   {"Q2_K", 256, 84, 80, 82, false},
    {"Q3_K", 256, 110, 108, -1, false}, {"Q4_K", 256, 144, 0, 2, false},
    {"Q5_K", 256, 176, 0, 2, false},    {"Q6_K", 256, 210, 208, -1, false},
    {"I4x32", 32, 21, 0, -1, true},     {"I4x128", 128, 69, 0, -1, true},
    {"I8x32", 32, 36, 0, -1, true},     {"I8x128", 128, 132, 0, -1, true},
    {"F8x32", 32, 36, 0, -1, true},     {"F8x128", 128, 132, 0, -1, true},
};
static_assert(std::size(kTraits) == std::size(kQuantFormats));

uint16_t load_u16(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}

float load_f16(const std::byte* at) { return f16_to_f32(load_u16(at)); }
int u8(std::byte b) { return std::to_integer<int>(b); }

// {f16 d; i8 q[32]}: w = d q.
void dequantize_q8_0(const std::byte* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
}

// {f16 d; u4 q[32]}: w = d (q - 8). The low nibbles are elements 0..15, the high ones 16..31.
void dequantize_q4_0(const std::byte* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    const int q = u8(block[2 + i]);
    out[i] = d * static_cast<float>((q & 15) - 8);
    out[i + 16] = d * static_cast<float>((q >> 4) - 8);
  }
}

// {f16 d, m; u4 q[32]}: w = d q + m, nibbles as in Q4_0.
void dequantize_q4_1(const std::byte* block, float* out) {
  const float d = load_f16(block);
  const float m = load_f16(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int q = u8(block[4 + i]);
    out[i] = d * static_cast<float>(q & 15) + m;
    out[i + 16] = d * static_cast<float>(q >> 4) + m;
  }
}

// {f16 d, [m]; u32 high; u4 low[32]}: q has its fifth bit at bit i of `high`, nibbles as in Q4_0.
// w = d (q - 16) without a minimum, d q + m with one.
void dequantize_q5(const std::byte* block, bool has_min, float* out) {
  const float d = load_f16(block);
  const float m = has_min ? load_f16(block + 2) : 0.0f;
  const std::byte* high = block + (has_min ? 4 : 2);
  const std::byte* low = high + 4;
  for (int i = 0; i < 32; ++i) {
    const int nibble = (u8(low[i % 16]) >> (i / 16 * 4)) & 15;
    const int q = nibble | (((u8(high[i / 8]) >> (i % 8)) & 1) << 4);
    out[i] = has_min ? d * static_cast<float>(q) + m : d * static_cast<float>(q - 16);
  }
}

// {f16 d; u4 q[32]}: w = d kIq4Values[q], nibbles as in Q4_0.
void dequantize_iq4_nl(const std::byte* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    const int q = u8(block[2 + i]);
    out[i] = d * static_cast<float>(kIq4Values[q & 15]);
    out[i + 16] = d * static_cast<float>(kIq4Values[q >> 4]);
  }
}

// Two bits of element e of 256: each half of 128 has 32 bytes, run j of 32 elements at bit 2j.
int two_bits(const std::byte* quants, int e) {
  return (u8(quants[e / 128 * 32 + e % 32]) >> (e % 128 / 32 * 2)) & 3;
}

// {u8 scale[16]; u2 q[256]; f16 d, m}: 16 elements share a byte whose low nibble is their scale and
// whose high one is their minimum's: w = d scale q - m minimum.
void dequantize_q2_k(const std::byte* block, float* out) {
  const float d = load_f16(block + 80);
  const float m = load_f16(block + 82);
  for (int e = 0; e < 256; ++e) {
    const int scale = u8(block[e / 16]);
    out[e] = d * static_cast<float>(scale & 15) * static_cast<float>(two_bits(block + 16, e)) -
             m * static_cast<float>(scale >> 4);
  }
}

// {u1 high[256]; u2 low[256]; u6 scale[16]; f16 d}: w = d (scale - 32) (q - 4), a scale for 16
// elements. `high` has the third bit of element e at bit e / 32 of byte e % 32. Scale j has its low
// 4 bits in nibble j / 8 of byte j % 8 and its high 2 bits at bit 2 (j / 4) of byte 8 + j % 4.
void dequantize_q3_k(const std::byte* block, float* out) {
  const float d = load_f16(block + 108);
  const std::byte* scales = block + 96;
  for (int e = 0; e < 256; ++e) {
    const int j = e / 16;
    const int scale = ((u8(scales[j % 8]) >> (j / 8 * 4)) & 15) |
                      (((u8(scales[8 + j % 4]) >> (j / 4 * 2)) & 3) << 4);
    const int q = two_bits(block + 32, e) | (((u8(block[e % 32]) >> (e / 32)) & 1) << 2);
    out[e] = d * static_cast<float>(scale - 32) * static_cast<float>(q - 4);
  }
}

// {f16 d, m; u6 scale[8], min[8]; [u1 high[256];] u4 low[256]}: 32 elements share a scale and a
// minimum: w = d scale q - m min. Runs 2j and 2j + 1 of 32 are the low and high nibbles of the same
// 32 bytes; `high` has the fifth bit of element e at bit e / 32 of byte e % 32.
// Of the 12 bytes of scales, bytes 0..3 have scales 0..3 in their low 6 bits, bytes 4..7 minimums
// 0..3; byte 8 + j has the low 4 bits of scale and of minimum 4 + j, whose high 2 bits are the top
// bits of bytes j and 4 + j.
void dequantize_q45_k(const std::byte* block, bool five_bits, float* out) {
  const float d = load_f16(block);
  const float m = load_f16(block + 2);
  const std::byte* s = block + 4;
  const std::byte* high = block + 16;
  const std::byte* low = five_bits ? high + 32 : high;
  for (int e = 0; e < 256; ++e) {
    const int j = e / 32, i = e % 32;
    const int scale = j < 4 ? u8(s[j]) & 63 : (u8(s[j + 4]) & 15) | ((u8(s[j - 4]) >> 6) << 4);
    const int min = j < 4 ? u8(s[j + 4]) & 63 : (u8(s[j + 4]) >> 4) | ((u8(s[j]) >> 6) << 4);
    int q = (u8(low[j / 2 * 32 + i]) >> (j % 2 * 4)) & 15;
    if (five_bits) q |= ((u8(high[i]) >> j) & 1) << 4;
    out[e] = d * static_cast<float>(scale) * static_cast<float>(q) - m * static_cast<float>(min);
  }
}

// {u8 low[128]; u8 high[64]; i8 scale[16]; f16 d}: w = d scale (q - 32), a scale for 16 elements.
// Each half of 128 elements is four runs of 32: run j has its low 4 bits in nibble j/2 of
// low[32 (j%2) ..] and its high 2 bits at bit 2j of high[..].
void dequantize_q6_k(const std::byte* block, float* out) {
  const float d = load_f16(block + 208);
  for (int e = 0; e < 256; ++e) {
    const int half = e / 128, run = e % 128 / 32, i = e % 32;
    const int low = u8(block[half * 64 + (run % 2) * 32 + i]) >> (run / 2 * 4);
    const int high = u8(block[128 + half * 32 + i]) >> (run * 2);
    const int q = ((low & 15) | ((high & 3) << 4)) - 32;
    const auto scale = static_cast<int8_t>(block[192 + e / 16]);
    out[e] = d * static_cast<float>(scale) * static_cast<float>(q);
  }
}

float load_f32(const std::byte* at) {
  float value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// {f32 d; u8 zero; u4 q[n]}: w = d (q - zero), each 32 elements as in Q4_0.
void dequantize_i4(const std::byte* block, int elements, float* out) {
  const float d = load_f32(block);
  const int zero = u8(block[4]);
  for (int e = 0; e < elements; ++e) {
    const int q = (u8(block[5 + e / 32 * 16 + e % 16]) >> (e % 32 / 16 * 4)) & 15;
    out[e] = d * static_cast<float>(q - zero);
  }
}

// {f32 d; i8 q[n]}: w = d q.
void dequantize_i8(const std::byte* block, int elements, float* out) {
  const float d = load_f32(block);
  for (int e = 0; e < elements; ++e) {
    out[e] = d * static_cast<float>(static_cast<int8_t>(block[4 + e]));
  }
}

// {f32 d; e4m3 q[n]}: w = d q.
void dequantize_f8(const std::byte* block, int elements, float* out) {
  const float d = load_f32(block);
  for (int e = 0; e < elements; ++e) {
    out[e] = d * e4m3_to_f32(std::to_integer<uint8_t>(block[4 + e]));
  }
}

}  // namespace

// Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, all ones is NaN.
float e4m3_to_f32(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                   : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -size : size;
}

const QuantTraits& traits(QuantFormat format) { return kTraits[static_cast<int>(format)]; }

int64_t row_bytes(QuantFormat format, int64_t elements) {
  const QuantTraits& t = traits(format);
  if (elements < 0 || elements % t.block_elements != 0) {
    fail(ErrorCode::kInvalidArgument, "{}: {} elements are not a multiple of the block of {}",
         t.name, elements, t.block_elements);
  }
  return elements / t.block_elements * t.block_bytes;
}

void dequantize(QuantFormat format, const std::byte* blocks, int64_t elements, float* out) {
  const QuantTraits& t = traits(format);
  const std::byte* at = blocks;
  for (int64_t i = 0; i < elements; i += t.block_elements, at += t.block_bytes) {
    switch (format) {
      case QuantFormat::kF32: std::memcpy(out + i, at, sizeof(float)); break;
      case QuantFormat::kF16: out[i] = load_f16(at); break;
      case QuantFormat::kBF16: out[i] = bf16_to_f32(load_u16(at)); break;
      case QuantFormat::kQ8_0: dequantize_q8_0(at, out + i); break;
      case QuantFormat::kQ4_0: dequantize_q4_0(at, out + i); break;
      case QuantFormat::kQ4_1: dequantize_q4_1(at, out + i); break;
      case QuantFormat::kQ5_0: dequantize_q5(at, false, out + i); break;
      case QuantFormat::kQ5_1: dequantize_q5(at, true, out + i); break;
      case QuantFormat::kIQ4_NL: dequantize_iq4_nl(at, out + i); break;
      case QuantFormat::kQ2_K: dequantize_q2_k(at, out + i); break;
      case QuantFormat::kQ3_K: dequantize_q3_k(at, out + i); break;
      case QuantFormat::kQ4_K: dequantize_q45_k(at, false, out + i); break;
      case QuantFormat::kQ5_K: dequantize_q45_k(at, true, out + i); break;
      case QuantFormat::kQ6_K: dequantize_q6_k(at, out + i); break;
      case QuantFormat::kI4x32:
      case QuantFormat::kI4x128: dequantize_i4(at, t.block_elements, out + i); break;
      case QuantFormat::kI8x32:
      case QuantFormat::kI8x128: dequantize_i8(at, t.block_elements, out + i); break;
      case QuantFormat::kF8x32:
      case QuantFormat::kF8x128: dequantize_f8(at, t.block_elements, out + i); break;
    }
  }
}

}  // namespace trireme
