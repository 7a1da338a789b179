#include "kernels/cuda_module.h"

#include <string>
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

Loaded load(DType element) {
  Loaded loaded;
  // The module needs cuBLASLt, which CUDA's packages put outside of the loader's own folders.
  preload_library({"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"});
  const std::string file = std::string("libtrireme_cuda_") + to_string(element) + ".so";
  try {
    using Entry = const CudaModule* (*)();
    const auto entry = reinterpret_cast<Entry>(load_module(file, "trireme_cuda_module"));
    const CudaModule* module = entry();
    if (std::string_view(module->build) != TRIREME_MODULE_BUILD) {
      fail(ErrorCode::kUnavailable, "{} is of another build than this program", file);
    }
    if (module->element != element) {
      fail(ErrorCode::kUnavailable, "{} computes with {}", file, to_string(module->element));
    }
    loaded.module = module;
    loaded.devices = module->device_count(loaded.problem);
  } catch (const Error& error) {
    loaded.problem = error.what();
  }
  return loaded;
}

// Each loaded once, when it is first asked for: a module stays for the life of the process.
const Loaded& loaded(DType element) {
  if (element == DType::kF16) {
    static const Loaded f16 = load(DType::kF16);
    return f16;
  }
  static const Loaded bf16 = load(DType::kBF16);
  return bf16;
}

}  // namespace

int cuda_device_count() { return loaded(DType::kBF16).devices; }

std::string cuda_unavailable() {
  const Loaded& cuda = loaded(DType::kBF16);
  return cuda.devices > 0 ? "" : cuda.problem;
}

std::unique_ptr<Backend> make_cuda_backend(ThreadPool& pool, int device, DType element) {
  if (element == DType::kF32) {
    fail(ErrorCode::kInvalidArgument, "GPUs compute with bf16 or f16 here, not with f32");
  }
  const Loaded& cuda = loaded(element);
  if (cuda.module == nullptr) {
    fail(ErrorCode::kUnavailable, "no {} on GPUs: {}", to_string(element), cuda.problem);
  }
  if (cuda.devices == 0) fail(ErrorCode::kUnavailable, "no GPU: {}", cuda.problem);
  if (device < 0 || device >= cuda.devices) {
    fail(ErrorCode::kInvalidArgument, "GPU {} is wanted, but this process sees {}", device,
         cuda.devices);
  }
  return cuda.module->make_backend(pool, device);
}

}  // namespace trireme
