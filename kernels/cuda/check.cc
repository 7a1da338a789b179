#include "kernels/cuda/check.h"

#include <cstring>

#include "base/error.h"

namespace trireme::cuda {

void fail_cuda(cudaError_t status, const char* what, const char* file, int line) {
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kResourceExhausted : ErrorCode::kInternal;
  const char* name = std::strrchr(file, '/');
  fail(code, "CUDA: {}: {} ({}:{})", what, cudaGetErrorString(status),
       name == nullptr ? file : name + 1, line);
}

void fail_internal(const char* what) { fail(ErrorCode::kInternal, "CUDA: {}", what); }

}  // namespace trireme::cuda
