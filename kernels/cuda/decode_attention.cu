#include <algorithm>
#include <mutex>

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

struct Device {
  bool dependent_launch = false;
  int slots = 0;  // thread blocks of the kernel at a time
};

// Once per device and kernel: the questions cost more than a launch.
template <int kDim, bool kExact>
const Device& device_for(bool wide) {
  constexpr int kMostDevices = 32;
  static std::mutex mutex;
  static Device known[kMostDevices][2];
  int id = 0;
  TRIREME_CUDA(cudaGetDevice(&id));
  if (id >= kMostDevices) fail_internal("more devices than decode attention knows");
  const std::lock_guard lock(mutex);
  Device& device = known[id][wide ? 1 : 0];
  if (device.slots > 0) return device;
  const auto kernel = decode::attend<kDim, kExact>;
  const int bytes = decode::Layout<kDim>::bytes(wide);
  int major = 0, resident = 0, multiprocessors = 0;
  TRIREME_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, id));
  TRIREME_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id));
  // The larger of both: the attribute is the kernel's, not the launch's.
  const int most = std::max(decode::Layout<kDim>::bytes(false), decode::Layout<kDim>::bytes(true));
  TRIREME_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  TRIREME_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, decode::kThreads,
                                                             static_cast<size_t>(bytes)));
  if (resident == 0) fail_internal("decode attention does not fit this device's shared memory");
  device = {major >= 9, resident * multiprocessors};
  return device;
}

template <int kDim, bool kExact>
void launch(const decode::Params& p, cudaStream_t stream) {
  const bool wide = p.group > 8;
  const Device& device = device_for<kDim, kExact>(wide);
  const int64_t units = int64_t{p.a.max_items} * p.a.kv.kv_heads;

  cudaLaunchAttribute dependent;
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(units, device.slots)));
  config.blockDim = dim3(decode::kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(decode::Layout<kDim>::bytes(wide));
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = device.dependent_launch ? 1 : 0;
  TRIREME_CUDA(cudaLaunchKernelEx(&config, decode::attend<kDim, kExact>, p));
}

}  // namespace

bool decode_attention_supports(int head_dim, int group) {
  return head_dim > 0 && head_dim <= 256 && head_dim % 2 == 0 && group >= 1 && group <= 16;
}

size_t decode_workspace_bytes(int32_t max_items, int q_heads, int head_dim) {
  const size_t heads = static_cast<size_t>(max_items) * static_cast<size_t>(q_heads);
  return round_up(2 * heads * sizeof(unsigned)) + round_up(heads * sizeof(float2)) +
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
  at += round_up(2 * heads * sizeof(unsigned));
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
