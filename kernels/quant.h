// Block formats of weights: what a row of a weight matrix looks like in a file and in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace trireme {

// The names and bit layouts are GGUF's (ggml) for quantized blocks and IEEE/bf16 for plain ones.
enum class QuantFormat : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ6_K };

struct QuantTraits {
  const char* name;
  int block_elements;  // consecutive elements of a row that share scales; 1 for plain formats
  int block_bytes;
};

const QuantTraits& traits(QuantFormat format);
inline bool is_plain(QuantFormat format) { return traits(format).block_elements == 1; }

// Bytes of `elements` consecutive elements; elements must be a multiple of block_elements.
int64_t row_bytes(QuantFormat format, int64_t elements);

// out[0, elements): exact float32 values of the blocks at `blocks`.
void dequantize(QuantFormat format, const std::byte* blocks, int64_t elements, float* out);

}  // namespace trireme
