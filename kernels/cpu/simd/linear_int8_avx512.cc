// The vector type comes first: the rest is written in terms of it.
#include "kernels/cpu/simd/vec_avx512.h"

#include "kernels/cpu/simd/linear_int8.h"
#include "kernels/cpu/simd/tables.h"

namespace trireme::cpu {

LinearKernel linear_int8_avx512(QuantFormat format) { return int8_kernel(format); }

void quantize_avx512(const float* x, int64_t blocks, QuantizedBlock* out, int64_t out_stride) {
  quantize(x, blocks, out, out_stride);
}

}  // namespace trireme::cpu
