// What the module exports.
#include <cuda_runtime_api.h>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda_module.h"

extern "C" const trireme::CudaModule* trireme_cuda_module() {
  static const trireme::CudaModule module{
      TRIREME_MODULE_BUILD, trireme::cuda::kElement,
      [](std::string& problem) {
        int count = 0;
        const cudaError_t status = cudaGetDeviceCount(&count);
        if (status == cudaSuccess && count > 0) return count;
        problem = status == cudaSuccess ? "there is no GPU" : cudaGetErrorString(status);
        return 0;
      },
      [](trireme::ThreadPool& pool, int device) -> std::unique_ptr<trireme::Backend> {
        return std::make_unique<trireme::cuda::CudaBackend>(pool, device);
      }};
  return &module;
}
