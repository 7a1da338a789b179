#include "kernels/cuda_module.h"

#include <string_view>

#include "base/error.h"
#include "base/module.h"

namespace trireme {
namespace {

struct Loaded {
  const CudaModule* module = nullptr;
  int devices = 0;
  std::string problem;
};

Loaded load() {
  Loaded loaded;
  // The module needs cuBLASLt, which CUDA's packages put outside of the loader's own folders.
  preload_library({"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"});
  try {
    using Entry = const CudaModule* (*)();
    const auto entry =
        reinterpret_cast<Entry>(load_module("libtrireme_cuda.so", "trireme_cuda_module"));
    const CudaModule* module = entry();
    if (std::string_view(module->build) != TRIREME_MODULE_BUILD) {
      fail(ErrorCode::kUnavailable, "libtrireme_cuda.so is of another build than this program");
    }
    loaded.module = module;
    loaded.devices = module->device_count(loaded.problem);
  } catch (const Error& error) {
    loaded.problem = error.what();
  }
  return loaded;
}

// Loaded once: a module stays for the life of the process.
const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

}  // namespace

int cuda_device_count() { return loaded().devices; }

std::string cuda_unavailable() { return loaded().devices > 0 ? "" : loaded().problem; }

std::unique_ptr<Backend> make_cuda_backend(ThreadPool& pool, int device) {
  const Loaded& cuda = loaded();
  if (cuda.devices == 0) fail(ErrorCode::kUnavailable, "no GPU: {}", cuda.problem);
  if (device < 0 || device >= cuda.devices) {
    fail(ErrorCode::kInvalidArgument, "GPU {} is wanted, but this process sees {}", device,
         cuda.devices);
  }
  return cuda.module->make_backend(pool, device);
}

}  // namespace trireme
