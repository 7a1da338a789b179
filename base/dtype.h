// Element types of activations and KV cache, and conversions between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace trireme {

enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t size_of(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
const char* to_string(DType dtype);

// bf16 is the upper half of an IEEE float32.
inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE binary16, subnormals, infinities and NaN included; f32_to_f16 rounds to nearest even.
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

}  // namespace trireme
