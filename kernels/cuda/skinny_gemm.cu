#include "kernels/cuda/skinny_gemm.h"

#include <algorithm>
#include <mutex>

#include "kernels/cuda/check.h"
#include "kernels/cuda/skinny_gemm.cuh"
#include "kernels/cuda/skinny_walk.cuh"

namespace trireme::cuda {
namespace {

constexpr int kMaxDevices = 64;
constexpr int kReservedShared = 1024;  // bytes for each block, by the driver
constexpr int kStaticShared = 512;     // bytes that kernels use besides what they are launched with

bool is_gated(GemmOut kind) { return kind == GemmOut::kSwiGlu || kind == GemmOut::kGeGlu; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

struct DeviceFacts {
  bool hopper = false;  // or later: has programmatic dependent launch and bulk copies
  int multiprocessors = 0;
  int shared_bytes = 0;  // that a block may have
};

const DeviceFacts& facts_of(int device) {
  static std::once_flag once[kMaxDevices];
  static DeviceFacts facts[kMaxDevices];
  std::call_once(once[device], [&] {
    int major = 0;
    DeviceFacts& these = facts[device];
    TRIREME_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    TRIREME_CUDA(
        cudaDeviceGetAttribute(&these.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    TRIREME_CUDA(cudaDeviceGetAttribute(&these.shared_bytes,
                                        cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    these.hopper = major >= 9;
    these.shared_bytes -= kStaticShared;
  });
  return facts[device];
}

int current_device() {
  int device = 0;
  TRIREME_CUDA(cudaGetDevice(&device));
  if (device >= kMaxDevices) fail_internal("more devices than expected");
  return device;
}

// Where the product is launched, and how.
struct Launch {
  int device = 0;
  int blocks = 0;
  int threads = kWarps * 32;
  int shared_bytes = 0;
  bool overlap = false;
  cudaStream_t stream = nullptr;
};

using Kernel = void (*)(SkinnyArgs);

template <Kernel kKernel>
void launch(const SkinnyArgs& args, const Launch& how) {
  static std::once_flag once[kMaxDevices];
  const DeviceFacts& facts = facts_of(how.device);
  std::call_once(once[how.device], [&] {
    TRIREME_CUDA(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      facts.shared_bytes));
    // The same split for all kernels, or a block cannot join those of the kernel before it.
    TRIREME_CUDA(cudaFuncSetAttribute(kKernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared));
  });
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(how.blocks));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<size_t>(how.shared_bytes);
  config.stream = how.stream;
  config.attrs = &early;
  config.numAttrs = how.overlap && facts.hopper ? 1 : 0;
  TRIREME_CUDA(cudaLaunchKernelEx(&config, kKernel, args));
}

template <int kGroups, int kDepth>
void launch_tile(const SkinnyArgs& args, Launch how) {
  const int64_t rows = 8 * kGroups / (is_gated(args.gemm.kind) ? 2 : 1);
  how.blocks = static_cast<int>((args.out_rows + rows - 1) / rows);
  how.shared_bytes = skinny_shared_bytes<kGroups, kDepth>();
  const bool many = args.gemm.tokens > 8;
  if constexpr (kSkinnyNorms) {
    if (args.gemm.norm != nullptr) {
      if (many) return launch<skinny_kernel<kGroups, kDepth, true, true>>(args, how);
      return launch<skinny_kernel<kGroups, kDepth, false, true>>(args, how);
    }
  }
  if (many) return launch<skinny_kernel<kGroups, kDepth, true, false>>(args, how);
  return launch<skinny_kernel<kGroups, kDepth, false, false>>(args, how);
}

template <int kWide>
bool launch_walk(SkinnyArgs args, const SkinnyShape& shape, Launch how) {
  const DeviceFacts& facts = facts_of(how.device);
  const bool norm = args.gemm.norm != nullptr, many = args.gemm.tokens > 8;
  const int rest = WalkLayout(0, args.gemm.cols, args.gemm.tokens, norm).total;
  const int room = (facts.shared_bytes - rest) / Stage<kWide>::kBytes;
  const int share = (facts.shared_bytes + kReservedShared) / shape.per_sm - kReservedShared;
  args.depth =
      shape.depth != 0 ? shape.depth : std::min((share - rest) / Stage<kWide>::kBytes, kMaxDepth);
  if (!facts.hopper || args.depth < 2 || args.depth > room || args.depth > kMaxDepth) return false;
  const int64_t groups = (args.out_rows + 7) / 8;
  how.blocks =
      static_cast<int>(std::min<int64_t>(groups, int64_t{facts.multiprocessors} * shape.per_sm));
  how.threads = kWarps * 32 + 32;
  // No block of the next kernel fits beside: it starts where one has ended, and its first requests
  // fill the memory's pause between the two. Let in earlier, it has sent them before that.
  how.shared_bytes = std::max(rest + args.depth * Stage<kWide>::kBytes,
                              (facts.shared_bytes + kReservedShared) / (shape.per_sm + 1));
  if constexpr (kSkinnyNorms) {
    if (norm) {
      many ? launch<skinny_walk_kernel<kWide, true, true>>(args, how)
           : launch<skinny_walk_kernel<kWide, false, true>>(args, how);
      return true;
    }
  }
  many ? launch<skinny_walk_kernel<kWide, true, false>>(args, how)
       : launch<skinny_walk_kernel<kWide, false, false>>(args, how);
  return true;
}

void check(const Gemm& gemm) {
  if (gemm.tokens < 1 || gemm.tokens > kMaxSkinnyTokens || gemm.rows < 1 || gemm.cols < 8) {
    fail_internal("skinny product: 1 to 16 tokens, at least one row and 8 columns");
  }
  if (gemm.cols % 8 != 0 || gemm.cols > (1 << 30) || gemm.x_stride % 8 != 0 || !aligned(gemm.x) ||
      !aligned(gemm.weight) || !aligned(gemm.norm)) {
    fail_internal("skinny product: x, weight and norm are 16-byte aligned, cols multiples of 8");
  }
  if (gemm.norm != nullptr && !kSkinnyNorms) fail_internal("skinny product: no norm with f16");
  if (is_gated(gemm.kind) && (gemm.rows % 2 != 0 || gemm.bias != nullptr)) {
    fail_internal("skinny product: a gated one has as many up rows as gate rows, and no bias");
  }
}

}  // namespace

// After measurements on an H100 (bench/cuda_gemm_bench.cu shapes).
SkinnyShape choose_skinny_shape(const Gemm& gemm) {
  const DeviceFacts& facts = facts_of(current_device());
  const bool norm = gemm.norm != nullptr;
  const bool tall = gemm.rows >= 12288;
  const int64_t x_bytes = gemm.tokens * gemm.cols * 2;
  const int64_t rest = WalkLayout(0, gemm.cols, gemm.tokens, norm).total;
  // Each block of a walk first brings all activations: that must be little beside its weights.
  const bool walks = facts.hopper && rest + (48 << 10) <= facts.shared_bytes &&
                     gemm.rows * gemm.cols >= (8 << 20) &&
                     (tall || (gemm.tokens <= 8 && !norm && x_bytes <= (112 << 10)) ||
                      (gemm.tokens > 8 && norm && gemm.rows >= 6144));
  if (walks) {
    if (x_bytes <= (32 << 10) && gemm.cols < 7168 && !norm) return {0, 0, 2, true};
    return {0, 0, 1, !tall || gemm.cols < 7168};
  }
  const int64_t blocks = (gemm.rows + 31) / 32;
  if (blocks < 64) return {2, 6};
  if (blocks <= facts.multiprocessors && facts.shared_bytes >= (130 << 10)) return {4, 4};
  return {4, 3};
}

bool launch_skinny_gemm_as(const SkinnyShape& shape, const Gemm& gemm, bool overlap,
                           cudaStream_t stream) {
  check(gemm);
  SkinnyArgs args;
  args.gemm = gemm;
  args.out_rows = is_gated(gemm.kind) ? gemm.rows / 2 : gemm.rows;
  Launch how;
  how.device = current_device();
  how.overlap = overlap;
  how.stream = stream;
  const auto is = [&](int groups, int depth) {
    return shape.groups == groups && shape.depth == depth;
  };
  if (shape.groups == 0) {
    return shape.wide ? launch_walk<2>(args, shape, how) : launch_walk<1>(args, shape, how);
  }
  if (is(2, 6)) {
    launch_tile<2, 6>(args, how);
  } else if (is(4, 3)) {
    launch_tile<4, 3>(args, how);
  } else if (is(4, 4)) {
    launch_tile<4, 4>(args, how);
  } else {
    return false;
  }
  return true;
}

void launch_skinny_gemm(const Gemm& gemm, void* /*workspace*/, cudaStream_t stream) {
  if (!launch_skinny_gemm_as(choose_skinny_shape(gemm), gemm, true, stream)) {
    fail_internal("skinny product: no kernel for the shape chosen");
  }
}

size_t skinny_workspace_bytes() { return 0; }

}  // namespace trireme::cuda
