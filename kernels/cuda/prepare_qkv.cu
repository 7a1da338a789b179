// Norm, rope and KV write of prefill tokens: a thread block a token. The vector path gives every
// head of q, k and v a power of two of neighbouring lanes, each with two 16-byte units: a pair of
// units that rope turns into each other, or two neighbours.
#include "kernels/cuda/check.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/head_prepare.cuh"
#include "kernels/cuda/ptx.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxDim = 256;

struct Units {
  float low[8], high[8];
};

__device__ inline void unpack_unit(uint4 from, float (&to)[8]) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack(words[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

__device__ inline uint4 pack_unit(const float (&from)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = pack(from[2 * i], from[2 * i + 1]);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline void scale_by(float (&x)[8], float factor, const float* weight) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 w = *reinterpret_cast<const float4*>(weight + i);
    x[i] *= factor * w.x;
    x[i + 1] *= factor * w.y;
    x[i + 2] *= factor * w.z;
    x[i + 3] *= factor * w.w;
  }
}

struct Token {
  const PrepareQkv& p;
  int64_t token;
  int64_t slot;  // of head 0 in the cache, in elements
  const float2* rotation;

  // Head `index` of q, then k, then v: where it is read and written.
  __device__ const Element* source(int index) const {
    const int dim = p.kv.head_dim;
    if (index < p.q_heads) {
      return static_cast<const Element*>(p.q) + token * p.q_stride + int64_t{index} * dim;
    }
    index -= p.q_heads;
    const bool is_k = index < p.kv.kv_heads;
    return static_cast<const Element*>(is_k ? p.k : p.v) + token * p.kv_stride +
           int64_t{is_k ? index : index - p.kv.kv_heads} * dim;
  }

  __device__ Element* target(int index) const {
    const int dim = p.kv.head_dim;
    if (index < p.q_heads) {
      return static_cast<Element*>(p.q) + token * p.q_stride + int64_t{index} * dim;
    }
    index -= p.q_heads;
    const bool is_k = index < p.kv.kv_heads;
    return static_cast<Element*>(is_k ? p.kv.k : p.kv.v) + slot +
           int64_t{is_k ? index : index - p.kv.kv_heads} * p.kv.block_size * dim;
  }

  __device__ bool is_v(int index) const { return index >= p.q_heads + p.kv.kv_heads; }
  __device__ const float* norm(int index) const {
    return index < p.q_heads ? p.prepare.q_norm : p.prepare.k_norm;
  }
};

// Lanes of a head: `lanes`, a power of two; those past head_dim / 16 idle.
__device__ inline void prepare_vectors(const Token& t, int index, int heads, int lane, int lanes) {
  const PrepareQkv& p = t.p;
  const int dim = p.kv.head_dim, half = p.prepare.rotary_dim / 2;
  const bool active = index < heads && lane < dim / 16;
  const bool rotated = lane * 8 < half;
  const int low = rotated ? lane * 8 : lane * 16;
  const int high = rotated ? low + half : low + 8;
  uint4 raw_low = make_uint4(0, 0, 0, 0), raw_high = raw_low;
  if (active) {
    const Element* from = t.source(index);
    raw_low = *reinterpret_cast<const uint4*>(from + low);
    raw_high = *reinterpret_cast<const uint4*>(from + high);
  }
  Units x;
  unpack_unit(raw_low, x.low);
  unpack_unit(raw_high, x.high);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += x.low[i] * x.low[i] + x.high[i] * x.high[i];
  for (int step = lanes / 2; step > 0; step /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, step);
  }
  if (!active) return;
  if (!t.is_v(index)) {
    if (const float* norm = t.norm(index); norm != nullptr) {
      const float inverse = rsqrtf(squares / static_cast<float>(dim) + p.prepare.norm_eps);
      scale_by(x.low, inverse, norm + low);
      scale_by(x.high, inverse, norm + high);
    }
    if (rotated) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float2 r = t.rotation[low + i];
        const float a = x.low[i], b = x.high[i];
        x.low[i] = a * r.x - b * r.y;
        x.high[i] = b * r.x + a * r.y;
      }
    }
    raw_low = pack_unit(x.low);
    raw_high = pack_unit(x.high);
  }
  Element* to = t.target(index);
  *reinterpret_cast<uint4*>(to + low) = raw_low;
  *reinterpret_cast<uint4*>(to + high) = raw_high;
}

__device__ inline void prepare_scalars(const Token& t, int index, int lane) {
  const PrepareQkv& p = t.p;
  const int dim = p.kv.head_dim, rotary = p.prepare.rotary_dim;
  HeadPairs<kMaxDim / 64> pairs;
  pairs.load(t.source(index), dim, rotary, lane);
  Element* to = t.target(index);
  const bool is_v = t.is_v(index);
  pairs.prepare(is_v ? nullptr : t.norm(index), p.prepare.norm_eps, is_v ? nullptr : t.rotation,
                dim, rotary, lane, [&](int d, float x) { to[d] = narrow(x); });
}

// Few registers: many blocks hide each other's chains of lookups.
__global__ void __launch_bounds__(kThreads, 6)
    prepare(const __grid_constant__ PrepareQkv p, int lanes) {
  __shared__ float2 rotation[kMaxDim / 2];
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int token = blockIdx.x;
  const int r = p.token_rows[token];
  if (r < 0) return;
  const DeviceRow row = p.rows[r];
  const int position = row.position + token - row.token_begin;
  for (int i = threadIdx.x; i < p.prepare.rotary_dim / 2; i += kThreads) {
    rotation[i] = rope_rotation(p.prepare.inv_freq[i], p.prepare.magnitude, position);
  }
  const int entry = position / p.kv.block_size;
  const int64_t block = p.tables.blocks[p.tables.table_begin[r] + entry];
  const int64_t slot =
      (block * p.kv.kv_heads * p.kv.block_size + position - int64_t{entry} * p.kv.block_size) *
      p.kv.head_dim;
  __syncthreads();
  const Token t{p, token, slot, rotation};
  const int heads = p.q_heads + 2 * p.kv.kv_heads;
  if (lanes == 0) {
    for (int index = threadIdx.x / 32; index < heads; index += kThreads / 32) {
      prepare_scalars(t, index, threadIdx.x % 32);
    }
    return;
  }
  const int lane = threadIdx.x % lanes;
  for (int begin = 0; begin < heads; begin += kThreads / lanes) {
    prepare_vectors(t, begin + threadIdx.x / lanes, heads, lane, lanes);
  }
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Lanes a head on the vector path; 0: the scalar path.
int vector_lanes(const PrepareQkv& p) {
  const bool fits = p.kv.head_dim % 16 == 0 && p.prepare.rotary_dim % 16 == 0 &&
                    p.q_stride % 8 == 0 && p.kv_stride % 8 == 0 && aligned(p.q) && aligned(p.k) &&
                    aligned(p.v) && aligned(p.kv.k) && aligned(p.kv.v) &&
                    aligned(p.prepare.q_norm) && aligned(p.prepare.k_norm);
  if (!fits) return 0;
  int lanes = 1;
  while (lanes < p.kv.head_dim / 16) lanes *= 2;
  return lanes;
}

}  // namespace

void launch_prepare_qkv(const PrepareQkv& args, cudaStream_t stream) {
  if (args.kv.head_dim <= 0 || args.kv.head_dim > kMaxDim || args.kv.head_dim % 2 != 0 ||
      args.prepare.rotary_dim > args.kv.head_dim || args.prepare.rotary_dim % 2 != 0) {
    fail_internal("QKV preparation was not built for this head size");
  }
  if (args.tokens <= 0) return;
  int device = 0, major = 0;
  TRIREME_CUDA(cudaGetDevice(&device));
  TRIREME_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  cudaLaunchAttribute dependent;
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(args.tokens));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &dependent;
  config.numAttrs = major >= 9 ? 1 : 0;
  TRIREME_CUDA(cudaLaunchKernelEx(&config, prepare, args, vector_lanes(args)));
}

}  // namespace trireme::cuda
