// Loading of kernels ahead of their first launch.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/check.h"

namespace trireme::cuda {

// The first launch of a kernel that is not loaded waits for the whole device. Where kernels that
// wait for other ranks may be queued, those after them must have been loaded.
template <typename Kernel>
void load_kernel(Kernel* kernel) {
  cudaFuncAttributes attributes;
  TRIREME_CUDA(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
}

}  // namespace trireme::cuda
