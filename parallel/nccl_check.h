// Errors of CUDA and NCCL calls that belong to no communicator yet. Included by parallel/nccl*.cc.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "base/error.h"

namespace trireme {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kResourceExhausted : ErrorCode::kInternal;
  fail(code, "CUDA: {}: {}", what, cudaGetErrorString(status));
}

inline void check_nccl(ncclResult_t result, const char* what) {
  if (result == ncclSuccess) return;
  fail(ErrorCode::kUnavailable, "NCCL: {}: {}: {}", what, ncclGetErrorString(result),
       ncclGetLastError(nullptr));
}

}  // namespace trireme
