#include "kernels/cuda/experts.h"

#include <algorithm>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/ptx.cuh"

namespace trireme::cuda {
namespace {

constexpr int kRouteThreads = 256;
constexpr int kGroupThreads = 1024;
constexpr int kProductThreads = 128;
constexpr int kCombineThreads = 256;
constexpr int kTileCols = 64;   // outputs of a tile
constexpr int kTileDepth = 64;  // columns of x and the weights at a time

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// Larger for larger values; NaN below all of them. Never 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  if (isnan(value)) return 1;
  const uint32_t bits = __float_as_uint(value);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A warp's choice for one token: lane l looks after the experts l, l + 32, …
__device__ void choose(const Experts& p, const float* logits, int lane, int32_t* chosen,
                       float* weights) {
  float top = -INFINITY;
  for (int e = lane; e < p.experts; e += 32) top = fmaxf(top, logits[e]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  }
  float all = 0.0f;
  for (int e = lane; e < p.experts; e += 32) all += expf(logits[e] - top);
  all = warp_sum(all);
  uint32_t taken = 0;  // bit i: expert lane + 32 i
  for (int k = 0; k < p.per_token; ++k) {
    uint64_t best = 0;
    for (int e = lane; e < p.experts; e += 32) {
      if (taken >> (e / 32) & 1) continue;
      const uint64_t key = uint64_t{ordered(logits[e])} << 32 | static_cast<uint32_t>(~e);
      best = max(best, key);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      best = max(best, __shfl_xor_sync(0xffffffffu, best, step));
    }
    const int e = static_cast<int>(~static_cast<uint32_t>(best));
    if (e % 32 == lane) taken |= 1u << (e / 32);
  }
  float kept = 0.0f;
  for (int e = lane; e < p.experts; e += 32) {
    if (taken >> (e / 32) & 1) kept += expf(logits[e] - top);
  }
  kept = warp_sum(kept);
  const float divisor = p.normalize ? kept : all;
  int begin = 0;
  for (int i = 0; i * 32 < p.experts; ++i) {
    const bool mine = taken >> i & 1;
    const uint32_t mask = __ballot_sync(0xffffffffu, mine);
    if (mine) {
      const int at = begin + __popc(mask & ((1u << lane) - 1));
      const int e = lane + 32 * i;
      chosen[at] = e;
      weights[at] = expf(logits[e] - top) / divisor;
    }
    begin += __popc(mask);
  }
}

// Logits of kTokens tokens by one block, an expert a warp: the router's row is read once for all of
// them. Each rank computes the same bits: sums are in an order of this kernel's own.
template <int kTokens>
__global__ void __launch_bounds__(kRouteThreads)
    route(const __grid_constant__ Experts p, const __grid_constant__ ExpertScratch s) {
  extern __shared__ float logits[];  // [kTokens][experts]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.x * kTokens;
  const auto* x = static_cast<const Element*>(p.x);
  for (int e = warp; e < p.experts; e += kRouteThreads / 32) {
    const auto* row = static_cast<const Element*>(p.router) + e * p.hidden;
    float sums[kTokens] = {};
    for (int64_t i = lane * 8; i < p.hidden; i += 32 * 8) {
      const uint4 w = *reinterpret_cast<const uint4*>(row + i);
      const uint32_t ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const int token = min(first + t, p.tokens - 1);
        const uint4 v = *reinterpret_cast<const uint4*>(x + token * p.x_stride + i);
        const uint32_t vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 a = unpack(ws[j]), b = unpack(vs[j]);
          sums[t] = fmaf(a.x, b.x, sums[t]);
          sums[t] = fmaf(a.y, b.y, sums[t]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = warp_sum(sums[t]);
      if (lane == 0) logits[t * p.experts + e] = sum;
    }
  }
  __syncthreads();
  for (int t = warp; t < kTokens && first + t < p.tokens; t += kRouteThreads / 32) {
    const int64_t at = int64_t{first + t} * p.per_token;
    choose(p, logits + t * p.experts, lane, s.chosen + at, s.weights + at);
  }
}

// One block: rows sorted by expert, and the tiles that they make. Which of an expert's rows comes
// first changes no result.
__global__ void __launch_bounds__(kGroupThreads)
    group(const __grid_constant__ Experts p, const __grid_constant__ ExpertScratch s) {
  __shared__ int32_t count[kMaxExperts], begin[kMaxExperts], tile_begin[kMaxExperts + 1];
  const int64_t total = int64_t{p.tokens} * p.per_token;
  for (int e = threadIdx.x; e < p.held; e += kGroupThreads) count[e] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < total; i += kGroupThreads) {
    const int e = s.chosen[i] - p.first;
    if (e >= 0 && e < p.held) atomicAdd(&count[e], 1);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int rows = 0, tiles = 0;
    for (int e = 0; e < p.held; ++e) {
      begin[e] = rows;
      tile_begin[e] = tiles;
      rows += count[e];
      tiles += (count[e] + s.tile_rows - 1) / s.tile_rows;
    }
    tile_begin[p.held] = tiles;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < p.held; e += kGroupThreads) {
    for (int at = 0; at < count[e]; at += s.tile_rows) {
      s.tiles[tile_begin[e] + at / s.tile_rows] = {e, begin[e] + at,
                                                   min(s.tile_rows, count[e] - at)};
    }
  }
  for (int64_t i = tile_begin[p.held] + threadIdx.x; i < s.most_tiles; i += kGroupThreads) {
    s.tiles[i] = {-1, 0, 0};
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < total; i += kGroupThreads) {
    const int e = s.chosen[i] - p.first;
    int32_t place = -1;
    if (e >= 0 && e < p.held) {
      place = atomicAdd(&begin[e], 1);
      s.rows[place] = static_cast<int32_t>(i / p.per_token);
    }
    s.places[i] = place;
  }
}

// y[place, n] of a tile's places: x[row] Wᵀ of the tile's expert, or activation of that times the
// product with a second weight.
struct GroupedProduct {
  const Element* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* rows = nullptr;  // of x, by place; null: the place itself
  const Element* weight = nullptr;
  const Element* second = nullptr;
  int64_t expert_stride = 0;
  int32_t n = 0;
  int32_t k = 0;
  const ExpertTile* tiles = nullptr;
  bool gelu_tanh = false;
  Element* y = nullptr;
};

// Byte offset of a 16-byte chunk in a tile of rows of 128 bytes, permuted against bank conflicts.
__device__ __forceinline__ uint32_t tile_offset(int row, int chunk) {
  return row * (kTileDepth * 2) + ((chunk ^ (row & 7)) << 4);
}

// kRows rows by kTileCols outputs, columns double-buffered. Four warps: of 64 rows each has 16, of
// 16 rows each has 16 of the outputs.
template <int kRows, bool kGated>
__global__ void __launch_bounds__(kProductThreads)
    grouped_product(const __grid_constant__ GroupedProduct p) {
  constexpr int kWeights = kGated ? 2 : 1;
  constexpr int kPairs = kRows == 64 ? 4 : 1;  // of 8 outputs twice, a warp
  constexpr int kChunks = kTileDepth / 8;
  constexpr int kXBytes = kRows * kTileDepth * 2, kWeightBytes = kTileCols * kTileDepth * 2;
  constexpr int kStageBytes = kXBytes + kWeights * kWeightBytes;
  static_assert(kRows == 16 || kRows == 64);
  __shared__ __align__(128) unsigned char shared[2 * kStageBytes];

  const ExpertTile tile = p.tiles[blockIdx.y];
  if (tile.expert < 0) return;
  const int n0 = blockIdx.x * kTileCols;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Element* weights[2] = {p.weight + tile.expert * p.expert_stride,
                               kGated ? p.second + tile.expert * p.expert_stride : nullptr};
  const uint32_t base = shared_address(shared);

  const auto load = [&](int stage, int k0) {
    const uint32_t to = base + stage * kStageBytes;
    for (int i = threadIdx.x; i < kRows * kChunks; i += kProductThreads) {
      const int row = i / kChunks, column = k0 + i % kChunks * 8;
      const bool valid = row < tile.count && column < p.k;
      const int64_t place = tile.begin + (valid ? row : 0);
      const int64_t from = p.rows != nullptr ? p.rows[place] : place;
      copy_16_async(to + tile_offset(row, i % kChunks),
                    p.x + from * p.x_stride + (valid ? column : 0), valid);
    }
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      const uint32_t weight_to = to + kXBytes + w * kWeightBytes;
      for (int i = threadIdx.x; i < kTileCols * kChunks; i += kProductThreads) {
        const int row = i / kChunks, column = k0 + i % kChunks * 8;
        const bool valid = n0 + row < p.n && column < p.k;
        copy_16_async(weight_to + tile_offset(row, i % kChunks),
                      weights[w] + (valid ? int64_t{n0 + row} * p.k + column : 0), valid);
      }
    }
  };

  const int warp_row = kRows == 64 ? warp * 16 : 0;
  const int warp_col = kRows == 64 ? 0 : warp * 16;
  float sums[kWeights][2 * kPairs][4] = {};
  load(0, 0);
  end_copy_group();
  const int steps = (p.k + kTileDepth - 1) / kTileDepth;
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load((step + 1) & 1, (step + 1) * kTileDepth);
    end_copy_group();
    wait_for_copy_groups<1>();
    __syncthreads();
    const uint32_t x_tile = base + (step & 1) * kStageBytes;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 2) {
      uint32_t a[4];
      load_matrices(a, x_tile + tile_offset(warp_row + (lane & 15), chunk + (lane >> 4)));
#pragma unroll
      for (int w = 0; w < kWeights; ++w) {
        const uint32_t weight_tile = x_tile + kXBytes + w * kWeightBytes;
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) {
          uint32_t b[4];
          const int row = warp_col + pair * 16 + (lane & 7) + ((lane >> 4) << 3);
          load_matrices(b, weight_tile + tile_offset(row, chunk + ((lane >> 3) & 1)));
          multiply_add(sums[w][2 * pair], a, b[0], b[1]);
          multiply_add(sums[w][2 * pair + 1], a, b[2], b[3]);
        }
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int block = 0; block < 2 * kPairs; ++block) {
    const int column = n0 + warp_col + block * 8 + lane % 4 * 2;
    if (column >= p.n) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + lane / 4 + half * 8;
      if (row >= tile.count) continue;
      float low = sums[0][block][2 * half], high = sums[0][block][2 * half + 1];
      if constexpr (kGated) {
        low = activate(low, p.gelu_tanh) * sums[1][block][2 * half];
        high = activate(high, p.gelu_tanh) * sums[1][block][2 * half + 1];
      }
      *reinterpret_cast<Element2*>(p.y + int64_t{tile.begin + row} * p.n + column) =
          narrow(low, high);
    }
  }
}

// A block a token: its experts' outputs, weighted, in the order of their numbers.
__global__ void __launch_bounds__(kCombineThreads)
    combine(const __grid_constant__ Experts p, const __grid_constant__ ExpertScratch s) {
  const int64_t token = blockIdx.x;
  const int64_t at = token * p.per_token;
  const auto* outer = static_cast<const Element2*>(s.outer);
  for (int64_t i = threadIdx.x; i < p.hidden / 2; i += kCombineThreads) {
    float2 sum = make_float2(0.0f, 0.0f);
    for (int k = 0; k < p.per_token; ++k) {
      const int32_t place = s.places[at + k];
      if (place < 0) continue;
      const float weight = s.weights[at + k];
      const float2 value = widen(outer[place * (p.hidden / 2) + i]);
      sum.x = fmaf(weight, value.x, sum.x);
      sum.y = fmaf(weight, value.y, sum.y);
    }
    if (p.accumulate) {
      float2* to = reinterpret_cast<float2*>(static_cast<float*>(p.out) + token * p.out_stride) + i;
      *to = make_float2(to->x + sum.x, to->y + sum.y);
    } else {
      reinterpret_cast<Element2*>(static_cast<Element*>(p.out) + token * p.out_stride)[i] =
          narrow(sum.x, sum.y);
    }
  }
}

template <bool kGated>
void launch_product(const GroupedProduct& product, const ExpertScratch& s, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((product.n + kTileCols - 1) / kTileCols),
                  static_cast<unsigned>(s.most_tiles));
  if (s.tile_rows == 64) {
    grouped_product<64, kGated><<<grid, kProductThreads, 0, stream>>>(product);
  } else {
    grouped_product<16, kGated><<<grid, kProductThreads, 0, stream>>>(product);
  }
  TRIREME_CUDA(cudaGetLastError());
}

void launch_route(const Experts& p, const ExpertScratch& s, cudaStream_t stream) {
  constexpr int kTogether = 4;  // tokens a block, where there are many
  const size_t row = static_cast<size_t>(p.experts) * sizeof(float);
  if (p.tokens <= 64) {
    route<1><<<static_cast<unsigned>(p.tokens), kRouteThreads, row, stream>>>(p, s);
  } else {
    const auto blocks = static_cast<unsigned>((p.tokens + kTogether - 1) / kTogether);
    route<kTogether><<<blocks, kRouteThreads, kTogether * row, stream>>>(p, s);
  }
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace

ExpertScratch carve_experts(std::byte* base, int64_t tokens, int per_token, int held,
                            int64_t hidden, int64_t ffn) {
  ExpertScratch s;
  const auto take = [&](int64_t bytes) -> void* {
    std::byte* at = base == nullptr ? nullptr : base + s.bytes;
    s.bytes += static_cast<size_t>((bytes + 255) / 256 * 256);
    return at;
  };
  const int64_t total = tokens * per_token;
  // Tiles of 64 rows pay where experts have as many.
  s.tile_rows = total >= int64_t{32} * held ? 64 : 16;
  // Every expert's last tile may be cut short, but no expert without rows has one.
  s.most_tiles = std::min(total, total / s.tile_rows + held);
  s.chosen = static_cast<int32_t*>(take(total * 4));
  s.weights = static_cast<float*>(take(total * 4));
  s.places = static_cast<int32_t*>(take(total * 4));
  s.rows = static_cast<int32_t*>(take(total * 4));
  s.tiles = static_cast<ExpertTile*>(
      take((total / 16 + held) * static_cast<int64_t>(sizeof(ExpertTile))));
  s.inner = take(total * ffn * kElementBytes);
  s.outer = take(total * hidden * kElementBytes);
  return s;
}

void launch_experts(const Experts& p, const ExpertScratch& s, cudaStream_t stream) {
  if (p.tokens == 0) return;
  if (p.experts > kMaxExperts || p.hidden % 8 != 0 || p.ffn % 8 != 0 || p.x_stride % 8 != 0) {
    fail_internal("experts of a shape that the GPU does not take");
  }
  launch_route(p, s, stream);
  group<<<1, kGroupThreads, 0, stream>>>(p, s);
  TRIREME_CUDA(cudaGetLastError());
  GroupedProduct product;
  product.x = static_cast<const Element*>(p.x);
  product.x_stride = p.x_stride;
  product.rows = s.rows;
  product.weight = static_cast<const Element*>(p.gate);
  product.second = static_cast<const Element*>(p.up);
  product.expert_stride = p.inner_stride;
  product.n = static_cast<int32_t>(p.ffn);
  product.k = static_cast<int32_t>(p.hidden);
  product.tiles = s.tiles;
  product.gelu_tanh = p.gelu_tanh;
  product.y = static_cast<Element*>(s.inner);
  launch_product<true>(product, s, stream);
  product.x = static_cast<const Element*>(s.inner);
  product.x_stride = p.ffn;
  product.rows = nullptr;
  product.weight = static_cast<const Element*>(p.down);
  product.second = nullptr;
  product.expert_stride = p.outer_stride;
  product.n = static_cast<int32_t>(p.hidden);
  product.k = static_cast<int32_t>(p.ffn);
  product.y = static_cast<Element*>(s.outer);
  launch_product<false>(product, s, stream);
  combine<<<static_cast<unsigned>(p.tokens), kCombineThreads, 0, stream>>>(p, s);
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace trireme::cuda
