#include "kernels/cuda/skinny_gemm.h"

#include <atomic>

#include "kernels/cuda/check.h"
#include "kernels/cuda/skinny_gemm.cuh"

namespace trireme::cuda {
namespace {

bool is_gated(GemmOut kind) { return kind == GemmOut::kSwiGlu || kind == GemmOut::kGeGlu; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether the current device knows programmatic dependent launch; also its number.
bool overlaps_launches(int& device) {
  static std::atomic<int> known[64];  // 0: not asked, 1: no, 2: yes
  TRIREME_CUDA(cudaGetDevice(&device));
  std::atomic<int>& entry = known[device % 64];
  if (entry.load(std::memory_order_relaxed) == 0) {
    int major = 0;
    TRIREME_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    entry.store(major >= 9 ? 2 : 1, std::memory_order_relaxed);
  }
  return entry.load(std::memory_order_relaxed) == 2;
}

template <int kWarps, int kGroups, int kDepth, bool kMany, bool kNorm>
void launch(const SkinnyArgs& args, bool overlap, cudaStream_t stream) {
  const auto kernel = skinny_kernel<kWarps, kGroups, kDepth, kMany, kNorm>;
  constexpr int kShared = skinny_shared_bytes<kWarps, kGroups, kDepth>();
  static std::atomic<uint64_t> prepared{0};  // one bit a device
  int device = 0;
  overlap = overlaps_launches(device) && overlap;
  const uint64_t bit = uint64_t{1} << (device % 64);
  if ((prepared.load(std::memory_order_acquire) & bit) == 0) {
    TRIREME_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
    // The same split for all kernels, or a block cannot join those of the kernel before it.
    TRIREME_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared));
    prepared.fetch_or(bit, std::memory_order_release);
  }
  const int out_rows_per_block = 8 * kGroups / (is_gated(args.gemm.kind) ? 2 : 1);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>((args.out_rows + out_rows_per_block - 1) / out_rows_per_block));
  config.blockDim = dim3(kWarps * 32);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  TRIREME_CUDA(cudaLaunchKernelEx(&config, kernel, args));
}

template <int kWarps, int kGroups, int kDepth>
void launch_shape(const SkinnyArgs& args, bool overlap, cudaStream_t stream) {
  const bool many = args.gemm.tokens > 8;
  if (args.gemm.norm != nullptr) {
    if (many) return launch<kWarps, kGroups, kDepth, true, true>(args, overlap, stream);
    return launch<kWarps, kGroups, kDepth, false, true>(args, overlap, stream);
  }
  if (many) return launch<kWarps, kGroups, kDepth, true, false>(args, overlap, stream);
  return launch<kWarps, kGroups, kDepth, false, false>(args, overlap, stream);
}

void check(const Gemm& gemm) {
  if (gemm.tokens < 1 || gemm.tokens > kMaxSkinnyTokens || gemm.rows < 1 || gemm.cols < 8) {
    fail_internal("skinny product: 1 to 16 tokens, at least one row and 8 columns");
  }
  if (gemm.cols % 8 != 0 || gemm.cols > (1 << 30) || gemm.x_stride % 8 != 0 || !aligned(gemm.x) ||
      !aligned(gemm.weight) || !aligned(gemm.norm)) {
    fail_internal("skinny product: x, weight and norm are 16-byte aligned, cols multiples of 8");
  }
  if (is_gated(gemm.kind) && (gemm.rows % 2 != 0 || gemm.bias != nullptr)) {
    fail_internal("skinny product: a gated one has as many up rows as gate rows, and no bias");
  }
}

}  // namespace

SkinnyShape choose_skinny_shape(const Gemm& gemm) {
  const int64_t groups = (gemm.rows + 7) / 8;
  if (groups >= 4 * 120) return {8, 4, 3};
  if (groups >= 2 * 100 || is_gated(gemm.kind)) return {8, 2, 6};
  return {8, 1, 8};
}

bool launch_skinny_gemm_as(const SkinnyShape& shape, const Gemm& gemm, bool overlap,
                           cudaStream_t stream) {
  check(gemm);
  SkinnyArgs args;
  args.gemm = gemm;
  args.out_rows = is_gated(gemm.kind) ? gemm.rows / 2 : gemm.rows;
  const auto is = [&](int warps, int groups, int depth) {
    return shape.warps == warps && shape.groups == groups && shape.depth == depth;
  };
  if (is(8, 1, 8) && !is_gated(gemm.kind)) {
    launch_shape<8, 1, 8>(args, overlap, stream);
  } else if (is(8, 2, 6)) {
    launch_shape<8, 2, 6>(args, overlap, stream);
  } else if (is(8, 4, 3)) {
    launch_shape<8, 4, 3>(args, overlap, stream);
#ifdef TRIREME_SKINNY_MORE_SHAPES
  } else if (is(8, 1, 12) && !is_gated(gemm.kind)) {
    launch_shape<8, 1, 12>(args, overlap, stream);
  } else if (is(8, 2, 4)) {
    launch_shape<8, 2, 4>(args, overlap, stream);
  } else if (is(8, 4, 2)) {
    launch_shape<8, 4, 2>(args, overlap, stream);
  } else if (is(8, 4, 4)) {
    launch_shape<8, 4, 4>(args, overlap, stream);
  } else if (is(4, 4, 4)) {
    launch_shape<4, 4, 4>(args, overlap, stream);
  } else if (is(4, 2, 8)) {
    launch_shape<4, 2, 8>(args, overlap, stream);
  } else if (is(8, 8, 2)) {
    launch_shape<8, 8, 2>(args, overlap, stream);
  } else if (is(4, 8, 3)) {
    launch_shape<4, 8, 3>(args, overlap, stream);
#endif
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
