// Block formats of weights: what a row of a weight matrix looks like in a file and in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace trireme {

// The names and bit layouts are GGUF's (ggml) for quantized blocks and IEEE/bf16 for plain ones.
// The last ones are ours, for what safetensors files hold in groups (docs/adr/0019): 4-bit integers
// with a zero point, 8-bit integers, and e4m3, in blocks of 32 or 128 with a float32 scale.
enum class QuantFormat : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIQ4_NL,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kI4x32,
  kI4x128,
  kI8x32,
  kI8x128,
  kF8x32,
  kF8x128,
};

struct QuantTraits {
  const char* name;
  int block_elements;  // consecutive elements of a row that share scales; 1 for plain formats
  int block_bytes;
  // Where a block keeps its floating-point numbers, as bytes from its begin; all else are integers,
  // of which every bit pattern is a value. -1: no minimum.
  int scale_at;
  int min_at;
  bool wide_scale;  // float32, not of 16 bits
};

// Every format, in the order of the enumeration.
constexpr QuantFormat kQuantFormats[] = {
    QuantFormat::kF32,    QuantFormat::kF16,    QuantFormat::kBF16,  QuantFormat::kQ8_0,
    QuantFormat::kQ4_0,   QuantFormat::kQ4_1,   QuantFormat::kQ5_0,  QuantFormat::kQ5_1,
    QuantFormat::kIQ4_NL, QuantFormat::kQ2_K,   QuantFormat::kQ3_K,  QuantFormat::kQ4_K,
    QuantFormat::kQ5_K,   QuantFormat::kQ6_K,   QuantFormat::kI4x32, QuantFormat::kI4x128,
    QuantFormat::kI8x32,  QuantFormat::kI8x128, QuantFormat::kF8x32, QuantFormat::kF8x128};

const QuantTraits& traits(QuantFormat format);
inline bool is_e4m3(QuantFormat format) {
  return format == QuantFormat::kF8x32 || format == QuantFormat::kF8x128;
}
inline bool is_plain(QuantFormat format) { return traits(format).block_elements == 1; }

// Bytes of `elements` consecutive elements; elements must be a multiple of block_elements.
int64_t row_bytes(QuantFormat format, int64_t elements);

// The values that IQ4_NL's 4-bit integers stand for.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

float e4m3_to_f32(uint8_t bits);

// out[0, elements): exact float32 values of the blocks at `blocks`.
void dequantize(QuantFormat format, const std::byte* blocks, int64_t elements, float* out);

}  // namespace trireme
