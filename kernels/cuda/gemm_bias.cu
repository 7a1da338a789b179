#include <cuda_bf16.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/skinny_gemm.h"

namespace trireme::cuda {
namespace {

__global__ void add_bias_kernel(__nv_bfloat16* y, int64_t y_stride, const float* bias,
                                int64_t rows) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  __nv_bfloat16& value = y[blockIdx.y * y_stride + row];
  value = __float2bfloat16_rn(__bfloat162float(value) + bias[row]);
}

}  // namespace

void launch_add_bias(const Gemm& gemm, cudaStream_t stream) {
  constexpr int kThreads = 256;
  constexpr int kMostTokens = 32768;  // a grid's second side ends at 65535
  for (int begin = 0; begin < gemm.tokens; begin += kMostTokens) {
    const int tokens = gemm.tokens - begin < kMostTokens ? gemm.tokens - begin : kMostTokens;
    const dim3 grid(static_cast<unsigned>((gemm.rows + kThreads - 1) / kThreads), tokens);
    add_bias_kernel<<<grid, kThreads, 0, stream>>>(
        static_cast<__nv_bfloat16*>(gemm.y) + begin * gemm.y_stride, gemm.y_stride, gemm.bias,
        gemm.rows);
    TRIREME_CUDA(cudaGetLastError());
  }
}

}  // namespace trireme::cuda
