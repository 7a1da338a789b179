// Prefill attention for compute capability 9.0. One persistent block a multiprocessor: a producer
// warpgroup (a warp each copies pages of K and of V by TMA, two copy the next tile's queries) and
// two consumer warpgroups of 64 queries each. A consumer multiplies the next keys while it still
// multiplies the last values, and the softmax of one consumer runs under the products of the other.
// The scheme is FlashAttention-3's (Shah et al., 2024, arXiv:2407.08608).
#include "kernels/cuda/check.h"
#include "kernels/cuda/prefill_attention_consumer.cuh"

namespace trireme::cuda {
namespace {

using namespace hopper;

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_hopper_kernel(const __grid_constant__ PrefillAttention args,
                          const __grid_constant__ CUtensorMap k_map,
                          const __grid_constant__ CUtensorMap v_map) {
  // Compiled for anything else the kernel is empty; prefill_hopper_supports() tells the two apart
  // by the barriers' shared memory.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char shared[];
  __shared__ Barriers<S> barriers;
  const uint32_t q_tile =
      (shared_address(shared) + S::kAlignment - 1) / S::kAlignment * S::kAlignment;
  const uint32_t k_tiles = q_tile + S::kQueryBytes;
  const uint32_t v_tiles = k_tiles + S::kStages * S::kKeyBytes;

  if (threadIdx.x == 0) {
    barrier_init(shared_address(&barriers.query_full), kQueryLoaders);
    barrier_init(shared_address(&barriers.query_empty), kConsumers * kGroupThreads);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(shared_address(&barriers.key_full[i]), 1);
      barrier_init(shared_address(&barriers.key_empty[i]), kConsumerWarps);
      barrier_init(shared_address(&barriers.value_full[i]), 1);
      barrier_init(shared_address(&barriers.value_empty[i]), kConsumerWarps);
    }
    barriers_visible_to_copies();
    prefetch_map(&k_map);
    prefetch_map(&v_map);
  }
  __syncthreads();

  if (threadIdx.x < kGroupThreads) {
    static_assert(40 + kConsumers * 232 <= (1 + kConsumers) * 168);  // 168: what a launch gives
    give_registers<40>();
    const int warp = threadIdx.x / 32;
    if (warp == 0) {
      produce_tiles<S>(args, &k_map, barriers.key_full, barriers.key_empty, k_tiles);
    } else if (warp == 1) {
      produce_tiles<S>(args, &v_map, barriers.value_full, barriers.value_empty, v_tiles);
    } else {
      produce_queries<S>(args, barriers, q_tile);
    }
  } else {
    take_registers<232>();
    const int group = threadIdx.x / kGroupThreads - 1;
    Consumer<S> consumer{args, barriers, q_tile, k_tiles, v_tiles, group};
    if (S::kTurns && group == 1) arrive_named(kTurn, kConsumers * kGroupThreads);
    consumer.run();
  }
#endif
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, fetched at run time so that nothing links against libcuda.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    TRIREME_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000,
                                                  cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) fail_internal("no cuTensorMapEncodeTiled");
    return reinterpret_cast<EncodeTiled>(address);
  }();
  return function;
}

// K or V as a matrix [blocks * kv_heads * block_size, head_dim], copied in boxes of 64 columns and
// of a page's rows. Columns past head_dim read as zeros.
CUtensorMap make_map(const DeviceKv& kv, void* data, int box_rows) {
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(kv.head_dim),
                              static_cast<cuuint64_t>(kv.blocks) * kv.kv_heads * kv.block_size};
  const cuuint64_t strides[] = {sizes[0] * sizeof(Element)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  constexpr CUtensorMapDataType type =
      kElementIsF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result =
      encode_tiled()(&map, type, 2, data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) fail_internal("cuTensorMapEncodeTiled failed on the KV cache");
  return map;
}

template <class S>
void launch(const PrefillAttention& args, cudaStream_t stream) {
  static const int multiprocessors = [] {
    int device = 0, count = 0;
    TRIREME_CUDA(cudaGetDevice(&device));
    TRIREME_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    TRIREME_CUDA(cudaFuncSetAttribute(
        prefill_hopper_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes));
    return count;
  }();
  const int box_rows = args.kv.block_size < S::kCols ? args.kv.block_size : S::kCols;
  const CUtensorMap k_map = make_map(args.kv, args.kv.k, box_rows);
  const CUtensorMap v_map = make_map(args.kv, args.kv.v, box_rows);
  const int total = args.tile_count * args.q_heads;
  const int blocks = total < multiprocessors ? total : multiprocessors;
  prefill_hopper_kernel<S><<<blocks, kThreads, S::kSharedBytes, stream>>>(args, k_map, v_map);
  TRIREME_CUDA(cudaGetLastError());
}

// One device a process: asked once.
bool device_runs_kernel() {
  static const bool runs = [] {
    int device = 0, major = 0, minor = 0;
    TRIREME_CUDA(cudaGetDevice(&device));
    TRIREME_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    TRIREME_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    cudaFuncAttributes attributes{};
    TRIREME_CUDA(cudaFuncGetAttributes(&attributes, prefill_hopper_kernel<Shape<128>>));
    return major == 9 && minor == 0 && attributes.sharedSizeBytes > 0;
  }();
  return runs;
}

}  // namespace

bool prefill_hopper_supports(const PrefillAttention& args) {
  const int block_size = args.kv.block_size;
  const int cols = args.kv.head_dim <= 128 ? Shape<128>::kCols : Shape<256>::kCols;
  return args.kv.head_dim <= 256 && (block_size % cols == 0 || cols % block_size == 0) &&
         device_runs_kernel();
}

void launch_prefill_hopper(const PrefillAttention& args, cudaStream_t stream) {
  if (args.kv.head_dim <= 64) {
    launch<Shape<64>>(args, stream);
  } else if (args.kv.head_dim <= 128) {
    launch<Shape<128>>(args, stream);
  } else {
    launch<Shape<256>>(args, stream);
  }
}

}  // namespace trireme::cuda
