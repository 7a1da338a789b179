// The GPU backend lives in modules that are loaded at run time, so that the program starts where no
// CUDA library exists: libtrireme_cuda_bf16.so and libtrireme_cuda_f16.so, by the element of weights,
// activations and KV cache.
#pragma once

#include <memory>
#include <string>

#include "base/dtype.h"
#include "kernels/backend.h"

namespace trireme {

class ThreadPool;

// GPUs that this process can use; 0 without the module, a driver or a GPU.
int cuda_device_count();
// Why there are none, in one line; empty if there are some.
std::string cuda_unavailable();

// `device`: below cuda_device_count(). `pool` converts weights while they are loaded and must
// outlive the backend. `element`: kBF16 or kF16. Throws kUnavailable without a GPU or without that
// element's module, kInvalidArgument for a wrong index.
std::unique_ptr<Backend> make_cuda_backend(ThreadPool& pool, int device,
                                           DType element = DType::kBF16);

// The table that the module's entry returns. Program and module share C++ types: `build` tells the
// state of the headers that define them, and modules of another state are refused.
struct CudaModule {
  const char* build = "";
  DType element = DType::kBF16;
  int (*device_count)(std::string& problem) = nullptr;
  std::unique_ptr<Backend> (*make_backend)(ThreadPool& pool, int device) = nullptr;
};

}  // namespace trireme

extern "C" const trireme::CudaModule* trireme_cuda_module();
