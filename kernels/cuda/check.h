// Errors of CUDA calls as Error{kInternal or kResourceExhausted}, made at the call site. Free of
// fmt, which nvcc's front end does not compile: .cu files include this and not base/error.h.
#pragma once

#include <cuda_runtime_api.h>

namespace trireme::cuda {

// Throws what `status` means, naming the call and its place.
[[noreturn]] void fail_cuda(cudaError_t status, const char* what, const char* file, int line);
// Throws kInternal: a caller's broken promise.
[[noreturn]] void fail_internal(const char* what);

}  // namespace trireme::cuda

#define TRIREME_CUDA(call)                                                   \
  do {                                                                       \
    const cudaError_t trireme_status = (call);                               \
    if (trireme_status != cudaSuccess) {                                     \
      ::trireme::cuda::fail_cuda(trireme_status, #call, __FILE__, __LINE__); \
    }                                                                        \
  } while (false)
