// Launches that may begin before the kernel before them has ended (dependent_launch.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"

namespace trireme::cuda {

inline bool has_early_launch() {
  static const bool has = [] {
    int device = 0, major = 0;
    TRIREME_CUDA(cudaGetDevice(&device));
    TRIREME_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
  }();
  return has;
}

template <typename... Parameters, typename... Arguments>
void launch_early(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream,
                  Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = has_early_launch() ? 1 : 0;
  TRIREME_CUDA(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

}  // namespace trireme::cuda
