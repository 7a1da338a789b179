#include "kernels/quant.h"

#include <cstring>

#include "base/dtype.h"
#include "base/error.h"

namespace trireme {
namespace {

constexpr QuantTraits kTraits[] = {
    {"F32", 1, 4},    {"F16", 1, 2},    {"BF16", 1, 2},     {"Q8_0", 32, 34},
    {"Q4_0", 32, 18}, {"Q4_1", 32, 20}, {"Q6_K", 256, 210},
};

uint16_t load_u16(const std::byte* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}

float load_f16(const std::byte* at) { return f16_to_f32(load_u16(at)); }

// {f16 d; i8 q[32]}: w = d q.
void dequantize_q8_0(const std::byte* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
}

// {f16 d; u4 q[32]}: w = d (q - 8). The low nibbles are elements 0..15, the high ones 16..31.
void dequantize_q4_0(const std::byte* block, float* out) {
  const float d = load_f16(block);
  for (int i = 0; i < 16; ++i) {
    const int q = static_cast<uint8_t>(block[2 + i]);
    out[i] = d * static_cast<float>((q & 15) - 8);
    out[i + 16] = d * static_cast<float>((q >> 4) - 8);
  }
}

// {f16 d, m; u4 q[32]}: w = d q + m, nibbles as in Q4_0.
void dequantize_q4_1(const std::byte* block, float* out) {
  const float d = load_f16(block);
  const float m = load_f16(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int q = static_cast<uint8_t>(block[4 + i]);
    out[i] = d * static_cast<float>(q & 15) + m;
    out[i + 16] = d * static_cast<float>(q >> 4) + m;
  }
}

// {u8 low[128]; u8 high[64]; i8 scale[16]; f16 d}: w = d scale (q - 32), a scale for 16 elements.
// Each half of 128 elements is four runs of 32: run j has its low 4 bits in nibble j/2 of
// low[32 (j%2) ..] and its high 2 bits at bit 2j of high[..].
void dequantize_q6_k(const std::byte* block, float* out) {
  const float d = load_f16(block + 208);
  for (int e = 0; e < 256; ++e) {
    const int half = e / 128, run = e % 128 / 32, i = e % 32;
    const int low = static_cast<uint8_t>(block[half * 64 + (run % 2) * 32 + i]) >> (run / 2 * 4);
    const int high = static_cast<uint8_t>(block[128 + half * 32 + i]) >> (run * 2);
    const int q = ((low & 15) | ((high & 3) << 4)) - 32;
    const auto scale = static_cast<int8_t>(block[192 + e / 16]);
    out[e] = d * static_cast<float>(scale) * static_cast<float>(q);
  }
}

}  // namespace

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
      case QuantFormat::kQ6_K: dequantize_q6_k(at, out + i); break;
    }
  }
}

}  // namespace trireme
