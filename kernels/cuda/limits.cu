#include <algorithm>
#include <cstdint>

#include "kernels/cuda/check.h"
#include "kernels/cuda/limits.h"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;  // 16 bytes each, in flight at once

__global__ void read_kernel(const uint4* data, size_t count, uint32_t* never) {
  uint32_t all = 0;
  const size_t stride = size_t{gridDim.x} * kThreads * kLoads;
  for (size_t at = size_t{blockIdx.x} * kThreads * kLoads + threadIdx.x; at < count; at += stride) {
    uint4 values[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) values[i] = __ldcs(data + at + i * kThreads);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      all |= values[i].x ^ values[i].y ^ values[i].z ^ values[i].w;
    }
  }
  if (all == 0x9e3779b9u) *never = all;  // so that the loads are not left out
}

__global__ void fill_kernel(uint4* data, size_t count) {
  const size_t at = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const auto mix = static_cast<uint32_t>(at) * 2654435761u;
  data[at] = make_uint4(mix, mix ^ 0x85ebca6bu, mix * 31u, ~mix);
}

}  // namespace

double measure_read_bandwidth(cudaStream_t stream) {
  size_t free = 0, total = 0;
  TRIREME_CUDA(cudaMemGetInfo(&free, &total));
  constexpr size_t kUnit = size_t{kThreads} * kLoads * sizeof(uint4);
  const size_t bytes = std::min(size_t{4} << 30, free / 10 * 9) / kUnit * kUnit;
  if (bytes < (size_t{256} << 20)) fail_internal("too little memory is free to measure its speed");
  int device = 0, multiprocessors = 0;
  TRIREME_CUDA(cudaGetDevice(&device));
  TRIREME_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  uint4* data = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  TRIREME_CUDA(cudaMalloc(reinterpret_cast<void**>(&data), bytes));
  TRIREME_CUDA(cudaEventCreate(&begin));
  TRIREME_CUDA(cudaEventCreate(&end));
  const size_t count = bytes / sizeof(uint4);
  fill_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(data, count);
  float best = 1e30f;
  for (int pass = 0; pass < 8; ++pass) {
    TRIREME_CUDA(cudaEventRecord(begin, stream));
    read_kernel<<<static_cast<unsigned>(multiprocessors * 4), kThreads, 0, stream>>>(
        data, count, reinterpret_cast<uint32_t*>(data));
    TRIREME_CUDA(cudaGetLastError());
    TRIREME_CUDA(cudaEventRecord(end, stream));
    TRIREME_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    TRIREME_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (pass > 0) best = std::min(best, ms);
  }
  TRIREME_CUDA(cudaEventDestroy(begin));
  TRIREME_CUDA(cudaEventDestroy(end));
  TRIREME_CUDA(cudaFree(data));
  return static_cast<double>(bytes) / (static_cast<double>(best) * 1e-3);
}

}  // namespace trireme::cuda
