#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/decode_attention.cuh"

namespace trireme::cuda {
namespace {

constexpr float kLog2E = 1.44269504f;

size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

// The kernel's head size for a model's: the sizes of today's models have their own, others are
// padded in shared memory.
int kernel_dim(int head_dim) {
  for (const int exact : {64, 80, 96, 128, 256}) {
    if (head_dim == exact) return exact;
  }
  return head_dim < 64 ? 64 : head_dim < 128 ? 128 : 256;
}

template <int kDim, bool kExact>
void launch(const decode::Params& p, cudaStream_t stream) {
  const int bytes = decode::Layout<kDim>::bytes(p.group > 8);
  const auto kernel = decode::attend<kDim, kExact>;
  int device = 0, multiprocessors = 0, major = 0, resident = 0;
  TRIREME_CUDA(cudaGetDevice(&device));
  TRIREME_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  TRIREME_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  TRIREME_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  TRIREME_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, decode::kThreads,
                                                             static_cast<size_t>(bytes)));
  if (resident == 0) fail_internal("decode attention does not fit this device's shared memory");
  const int64_t units = int64_t{p.a.max_items} * p.a.kv.kv_heads;
  const int64_t slots = int64_t{resident} * multiprocessors;

  cudaLaunchAttribute dependent;
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(std::min(units, slots)));
  config.blockDim = dim3(decode::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = major >= 9 ? 1 : 0;
  TRIREME_CUDA(cudaLaunchKernelEx(&config, kernel, p));
}

}  // namespace

bool decode_attention_supports(int head_dim, int group) {
  return head_dim > 0 && head_dim <= 256 && head_dim % 2 == 0 && group >= 1 && group <= 16;
}

size_t decode_workspace_bytes(int32_t max_items, int q_heads, int head_dim) {
  const size_t heads = static_cast<size_t>(max_items) * static_cast<size_t>(q_heads);
  return round_up(heads * sizeof(unsigned)) + round_up(heads * sizeof(float2)) +
         heads * static_cast<size_t>(kernel_dim(head_dim)) * sizeof(float);
}

void launch_decode_attention(const DecodeAttention& args, cudaStream_t stream) {
  const int dim = args.kv.head_dim;
  if (args.kv.kv_heads <= 0 || args.q_heads % args.kv.kv_heads != 0 ||
      !decode_attention_supports(dim, args.q_heads / args.kv.kv_heads) ||
      args.prepare.rotary_dim > dim || args.prepare.rotary_dim % 2 != 0) {
    fail_internal("decode attention was not built for these heads");
  }
  if (args.max_items <= 0) return;
  decode::Params p;
  p.a = args;
  p.group = args.q_heads / args.kv.kv_heads;
  p.score_scale = args.softcap > 0.0f ? args.scale / args.softcap : args.scale * kLog2E;
  p.softcap_log2 = args.softcap * kLog2E;
  const size_t heads = static_cast<size_t>(args.max_items) * static_cast<size_t>(args.q_heads);
  auto* at = static_cast<uint8_t*>(args.workspace);
  p.arrived = reinterpret_cast<unsigned*>(at);
  at += round_up(heads * sizeof(unsigned));
  p.partial_max_sum = reinterpret_cast<float2*>(at);
  at += round_up(heads * sizeof(float2));
  p.partial = reinterpret_cast<float*>(at);
  switch (kernel_dim(dim)) {
    case 64: return dim == 64 ? launch<64, true>(p, stream) : launch<64, false>(p, stream);
    case 80: return launch<80, true>(p, stream);
    case 96: return launch<96, true>(p, stream);
    case 128: return dim == 128 ? launch<128, true>(p, stream) : launch<128, false>(p, stream);
    default: return dim == 256 ? launch<256, true>(p, stream) : launch<256, false>(p, stream);
  }
}

}  // namespace trireme::cuda
