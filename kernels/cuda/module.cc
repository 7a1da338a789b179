// What the module exports.
#include <cuda_runtime_api.h>

#include <cstdlib>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda_module.h"

// Streams that share one of the device's queues wait for each other, also where a kernel waits for
// another rank: as many queues as there can be. CUDA reads this before its first call.
extern "C" const trireme::CudaModule* trireme_cuda_module() {
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
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
