// Device memory with values in it, for benchmarks of attention kernels. Who takes it frees it, with
// cudaFree.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/check.h"

namespace trireme::cuda {

// About normal, of variance 1, in bf16.
static __global__ void fill_random(uint16_t* data, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u ^ seed;
    float sum = -2.0f;  // of four uniform numbers: about normal
    for (int j = 0; j < 4; ++j) {
      x ^= x << 13, x ^= x >> 17, x ^= x << 5;
      sum += static_cast<float>(x) * 0x1p-32f;
    }
    data[i] = static_cast<uint16_t>(__float_as_uint(sum * 1.7320508f) >> 16);
  }
}

template <class T>
T* allocate(size_t count) {
  T* data = nullptr;
  TRIREME_CUDA(cudaMalloc(&data, count * sizeof(T)));
  return data;
}
template <class T>
T* upload(const std::vector<T>& host) {
  T* data = allocate<T>(host.size());
  TRIREME_CUDA(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}
inline uint16_t* random_values(size_t count, uint32_t seed) {
  auto* data = allocate<uint16_t>(count);
  fill_random<<<1024, 256>>>(data, count, seed);
  TRIREME_CUDA(cudaGetLastError());
  return data;
}

}  // namespace trireme::cuda
