// The GPU backend lives in a module that is loaded at run time (libtrireme_cuda.so), so that the
// program starts where no CUDA library exists.
#pragma once

#include <memory>
#include <string>

#include "kernels/backend.h"

namespace trireme {

class ThreadPool;

// GPUs that this process can use; 0 without the module, a driver or a GPU.
int cuda_device_count();
// Why there are none, in one line; empty if there are some.
std::string cuda_unavailable();

// `device`: below cuda_device_count(). `pool` converts weights while they are loaded and must
// outlive the backend. Throws kUnavailable without a GPU, kInvalidArgument for a wrong index.
std::unique_ptr<Backend> make_cuda_backend(ThreadPool& pool, int device);

// The table that the module's entry returns. Program and module share C++ types: `build` tells the
// state of the headers that define them, and modules of another state are refused.
struct CudaModule {
  const char* build = "";
  int (*device_count)(std::string& problem) = nullptr;
  std::unique_ptr<Backend> (*make_backend)(ThreadPool& pool, int device) = nullptr;
};

}  // namespace trireme

extern "C" const trireme::CudaModule* trireme_cuda_module();
