// The skinny product: y[tokens <= 16, rows] = x W^T, bound by reading W once.
//
// A block owns 8 * kGroups weight rows; its warps share out the columns in chunks of 64, chunk i to
// warp i % kWarps, and their sums are added in warp order at the end. Each lane copies its own
// pieces of the weights asynchronously into its own slots of shared memory, kDepth chunks ahead,
// so that no barrier stands between the copies and their use. The products run on tensor cores
// (m16n8k16) with the tokens on the 16-wide side and 8 weight rows on the other. Within a chunk the
// columns are taken in an order in which a lane's fragment is 16 consecutive bytes, the same for
// weights and activations: lane 4g + t holds columns 8t .. 8t + 7 of each half chunk, of row g.
//
// The sum over columns of one (token, row) runs in an order that depends on kWarps and cols only:
// neither on the other tokens, nor on their number, nor on kGroups and kDepth.
//
// With the norm, x is float32 and element(x * norm) is multiplied; the sum of squares is gathered
// on the way, and 1 / rms is applied to the sums.
#pragma once

#include <type_traits>

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/ptx.cuh"

namespace trireme::cuda {

struct SkinnyArgs {
  Gemm gemm;
  int64_t out_rows = 0;  // rows, or rows / 2 where gate and up are combined
  int depth = 0;         // stages of skinny_walk.cuh's ring
};

inline constexpr int kWarps = 8;   // of a block: the order of the sums follows from it
inline constexpr int kChunk = 64;  // columns
inline constexpr int kPartialStride = 16 * 8 + 8;  // floats: 16 tokens x 8 rows, and a pad
inline constexpr int kSlotBytes = 2 * 32 * 16;     // a chunk of 8 rows

template <int kGroups, int kDepth>
constexpr int skinny_shared_bytes() {
  return kWarps * kGroups * kDepth * kSlotBytes + kWarps * 16 * int{sizeof(float)};
}

// element(x * n) of 8 columns; adds their squares up.
__device__ inline uint4 normed_fragment(float4 x0, float4 x1, float4 n0, float4 n1,
                                        float& squares) {
  // With the roundings spelt out, so that all kernels come to the same bits.
  const float xs[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
#pragma unroll
  for (float x : xs) squares = __fmaf_rn(x, x, squares);
  return make_uint4(pack(x0.x * n0.x, x0.y * n0.y), pack(x0.z * n0.z, x0.w * n0.w),
                    pack(x1.x * n1.x, x1.y * n1.y), pack(x1.z * n1.z, x1.w * n1.w));
}

// Of the 8 columns that a lane has of half a chunk.
struct NormWeights {
  float4 value[2];

  __device__ void load(const Gemm& gemm, int64_t column) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      value[part] = column < gemm.cols
                        ? __ldg(reinterpret_cast<const float4*>(gemm.norm + column) + part)
                        : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
  }
};

// A lane's activations of one chunk: [half chunk][token g or g + 8].
template <bool kMany>
struct PlainActivations {
  static constexpr int kTiles = kMany ? 2 : 1;
  uint4 value[2][kTiles];

  __device__ void load(const Gemm& gemm, int64_t column, int token) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int row = token + 8 * tile;
        const int64_t at = column + 32 * half;
        value[half][tile] = make_uint4(0, 0, 0, 0);
        if (row < gemm.tokens && at < gemm.cols) {
          value[half][tile] = *reinterpret_cast<const uint4*>(static_cast<const Element*>(gemm.x) +
                                                              row * gemm.x_stride + at);
        }
      }
    }
  }
  __device__ uint4 fragment(int half, int tile, const NormWeights&, float&) const {
    return value[half][tile];
  }
};

template <bool kMany>
struct NormedActivations {
  static constexpr int kTiles = kMany ? 2 : 1;
  float4 value[2][kTiles][2];

  __device__ void load(const Gemm& gemm, int64_t column, int token) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = column + 32 * half;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int row = token + 8 * tile;
        const float* from = static_cast<const float*>(gemm.x) + row * gemm.x_stride + at;
        const bool valid = at < gemm.cols && row < gemm.tokens;
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          value[half][tile][part] = valid ? reinterpret_cast<const float4*>(from)[part]
                                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
      }
    }
  }
  __device__ uint4 fragment(int half, int tile, const NormWeights& norm, float& squares) const {
    return normed_fragment(value[half][tile][0], value[half][tile][1], norm.value[0], norm.value[1],
                           squares);
  }
};

__device__ inline float activate(GemmOut kind, float gate) {
  if (kind == GemmOut::kSwiGlu) return gate / (1.0f + expf(-gate));
  const float inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
  return 0.5f * gate * (1.0f + tanhf(inner));
}

// 1 / rms of a token from the warps' sums of squares [warp][16].
__device__ inline float inverse_rms(const Gemm& gemm, const float* squares, int token) {
  float total = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += squares[warp * 16 + token];
  return 1.0f / sqrtf(total / static_cast<float>(gemm.cols) + gemm.norm_eps);
}

// `value` is the up row's sum where the kind is gated, else the row's; `gate` is used if gated.
__device__ inline void write_result(const Gemm& gemm, int token, int64_t row, float gate,
                                    float value) {
  const int64_t at = token * gemm.y_stride + row;
  if (gemm.kind == GemmOut::kSwiGlu || gemm.kind == GemmOut::kGeGlu) {
    value *= activate(gemm.kind, gate);
  } else if (gemm.bias != nullptr) {
    value += gemm.bias[row];
  }
  if (gemm.kind == GemmOut::kAddF32) {
    static_cast<float*>(gemm.y)[at] += value;
  } else if (gemm.kind == GemmOut::kF32) {
    static_cast<float*>(gemm.y)[at] = value;
  } else {
    static_cast<Element*>(gemm.y)[at] = narrow(value);
  }
}

// Adds up the warps' sums and writes a tile's results. partials: each warp's own part of the ring,
// [warp][ring bytes] as [group][16 tokens][8 rows] floats; squares: [warp][16].
template <int kGroups, int kDepth, bool kNorm>
__device__ void write_results(const SkinnyArgs& args, const unsigned char* partials,
                              const float* squares) {
  const Gemm& gemm = args.gemm;
  const bool gated = gemm.kind == GemmOut::kSwiGlu || gemm.kind == GemmOut::kGeGlu;
  const int out_groups = gated ? kGroups / 2 : kGroups;
  const int64_t first = int64_t{blockIdx.x} * (8 * out_groups);
  const auto sum = [&](int group, int token, int n) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const unsigned char* from = partials + warp * (kGroups * kDepth * kSlotBytes);
      total += reinterpret_cast<const float*>(from)[group * kPartialStride + token * 8 + n];
    }
    return total;
  };
  for (int i = threadIdx.x; i < gemm.tokens * 8 * out_groups; i += kWarps * 32) {
    const int token = i / (8 * out_groups);
    const int group = i / 8 % out_groups;
    const int n = i % 8;
    const int64_t row = first + group * 8 + n;
    if (row >= args.out_rows) continue;
    float scale = 1.0f;
    if constexpr (kNorm) scale = inverse_rms(gemm, squares, token);
    const float value = sum(group, token, n) * scale;
    const float up = gated ? sum(group + out_groups, token, n) * scale : value;
    write_result(gemm, token, row, value, up);
  }
}

template <int kGroups, int kDepth, bool kMany, bool kNorm>
__global__ void __launch_bounds__(kWarps * 32)
    skinny_kernel(const __grid_constant__ SkinnyArgs args) {
  using Activations = std::conditional_t<kNorm, NormedActivations<kMany>, PlainActivations<kMany>>;
  extern __shared__ __align__(16) unsigned char shared[];
  static_assert(kPartialStride * 4 <= kSlotBytes);
  let_next_kernel_start();
  const Gemm& gemm = args.gemm;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  unsigned char* ring = shared + warp * (kGroups * kDepth * kSlotBytes);
  const uint4* slots = reinterpret_cast<const uint4*>(ring) + lane;
  const uint32_t slots_address = shared_address(slots);
  const uint64_t policy = evict_first_policy();

  // Rows past the end repeat the last one; their results are not written.
  const bool gated = gemm.kind == GemmOut::kSwiGlu || gemm.kind == GemmOut::kGeGlu;
  const int out_groups = gated ? kGroups / 2 : kGroups;
  const Element* weights[kGroups];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const bool up = group >= out_groups;
    int64_t row =
        int64_t{blockIdx.x} * (8 * out_groups) + 8 * (up ? group - out_groups : group) + g;
    row = min(row, args.out_rows - 1) + (up ? args.out_rows : 0);
    weights[group] = static_cast<const Element*>(gemm.weight) + row * gemm.cols;
  }
  const int cols = static_cast<int>(gemm.cols);
  const int chunks = (cols + kChunk - 1) / kChunk;
  const int count = chunks > warp ? (chunks - warp + kWarps - 1) / kWarps : 0;
  const int first_column = warp * kChunk + 8 * t;
  const auto request = [&](int i) {  // chunk i of this warp into slot i % kDepth
    if (i < count) {
      const int column = first_column + i * (kWarps * kChunk);
      const uint32_t to = slots_address + (i % kDepth) * (kGroups * kSlotBytes);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const bool inside = column + 32 * half < cols;
          copy_16_async(to + group * kSlotBytes + half * (kSlotBytes / 2),
                        weights[group] + (inside ? column + 32 * half : 0), inside, policy);
        }
      }
    }
    end_copy_group();
  };
#pragma unroll
  for (int i = 0; i < kDepth; ++i) request(i);

  wait_for_previous_kernel();
  float sums[kGroups][4] = {};
  float squares[2] = {};
  Activations next;
  NormWeights next_norms[2];
  const auto load_next = [&](int column) {
    next.load(gemm, column, g);
    if constexpr (kNorm) {
      next_norms[0].load(gemm, column);
      next_norms[1].load(gemm, column + 32);
    }
  };
  if (count > 0) load_next(first_column);
  for (int i = 0; i < count; ++i) {
    const Activations current = next;
    const NormWeights norms[2] = {next_norms[0], next_norms[1]};
    if (i + 1 < count) load_next(first_column + (i + 1) * (kWarps * kChunk));
    wait_for_copy_groups<kDepth - 1>();
    const uint4* slot = slots + (i % kDepth) * (kGroups * kSlotBytes / 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 x = current.fragment(half, 0, norms[half], squares[0]);
      uint4 high = make_uint4(0, 0, 0, 0);
      if constexpr (kMany) high = current.fragment(half, 1, norms[half], squares[1]);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const uint4 w = slot[(group * 2 + half) * 32];
        multiply_add(sums[group], x.x, high.x, x.y, high.y, w.x, w.y);
        multiply_add(sums[group], x.z, high.z, x.w, high.w, w.z, w.w);
      }
    }
    request(i + kDepth);
  }

  // The warp's own copies have all been used: its part of the ring takes its sums.
  wait_for_copy_groups<0>();
  __syncwarp();
  float* partial = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    float* to = partial + group * kPartialStride + g * 8 + 2 * t;
    *reinterpret_cast<float2*>(to) = make_float2(sums[group][0], sums[group][1]);
    if constexpr (kMany) {
      *reinterpret_cast<float2*>(to + 64) = make_float2(sums[group][2], sums[group][3]);
    }
  }
  float* all_squares = reinterpret_cast<float*>(shared + kWarps * (kGroups * kDepth * kSlotBytes));
  if constexpr (kNorm) {
#pragma unroll
    for (int tile = 0; tile < (kMany ? 2 : 1); ++tile) {
      float total = squares[tile];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      if (t == 0) all_squares[warp * 16 + tile * 8 + g] = total;
    }
  }
  __syncthreads();
  write_results<kGroups, kDepth, kNorm>(args, shared, all_squares);
}

}  // namespace trireme::cuda
