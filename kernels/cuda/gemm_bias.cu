#include "kernels/cuda/check.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/skinny_gemm.h"

namespace trireme::cuda {
namespace {

__global__ void add_bias_kernel(Element* y, int64_t y_stride, const float* bias, int64_t rows) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  Element& value = y[blockIdx.y * y_stride + row];
  value = narrow(widen(value) + bias[row]);
}

}  // namespace

void launch_add_bias(const Gemm& gemm, cudaStream_t stream) {
  constexpr int kThreads = 256;
  constexpr int kMostTokens = 32768;  // a grid's second side ends at 65535
  for (int begin = 0; begin < gemm.tokens; begin += kMostTokens) {
    const int tokens = gemm.tokens - begin < kMostTokens ? gemm.tokens - begin : kMostTokens;
    const dim3 grid(static_cast<unsigned>((gemm.rows + kThreads - 1) / kThreads), tokens);
    add_bias_kernel<<<grid, kThreads, 0, stream>>>(
        static_cast<Element*>(gemm.y) + begin * gemm.y_stride, gemm.y_stride, gemm.bias, gemm.rows);
    TRIREME_CUDA(cudaGetLastError());
  }
}

}  // namespace trireme::cuda
