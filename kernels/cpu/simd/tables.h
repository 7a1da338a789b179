// What the files of one instruction set give to its table.
#pragma once

#include "kernels/cpu/ops.h"

namespace trireme::cpu {

LinearKernel linear_plain_avx2(QuantFormat format);
LinearKernel linear_int8_avx2(QuantFormat format);
void quantize_avx2(const float* x, int64_t blocks, QuantizedBlock* out, int64_t out_stride);
void attend_avx2(const AttentionTile& tile);

LinearKernel linear_plain_avx512(QuantFormat format);
LinearKernel linear_int8_avx512(QuantFormat format);
void quantize_avx512(const float* x, int64_t blocks, QuantizedBlock* out, int64_t out_stride);
void attend_avx512(const AttentionTile& tile);

// Of avx512-bf16.
LinearKernel linear_bf16_avx512();
void tile_bf16_avx512(const float* x, int64_t stride, int rows, int64_t cols, std::byte* out);
double bf16_operations_avx512(int64_t repeats);

}  // namespace trireme::cpu
