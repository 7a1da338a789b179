// The skinny product with the activations resident in shared memory: a block walks over its weight
// rows 8 at a time, all columns of them, so that what is on its way from memory is contiguous. For
// activations that fit; the sums run in the order of skinny_gemm.cuh, to the same bits.
#pragma once

#include "kernels/cuda/skinny_gemm.cuh"

namespace trireme::cuda {

// A block's shared memory, in bytes: [ring][activations][norm][residual][partial sums, twice]
// [sums of squares]; activations, norm and residual in 8 equal parts, one a warp.
struct WalkLayout {
  int activations = 0;  // offsets
  int norm = 0;         // float32, of the warp's chunks
  int residual = 0;     // float32, as it comes
  int partials = 0;
  int squares = 0;
  int total = 0;
  int warp_activations = 0;  // bytes
  int warp_norm = 0;
  int warp_residual = 0;

  __host__ __device__ WalkLayout(int ring_bytes, int64_t cols, int tokens, bool with_norm) {
    const int chunks = static_cast<int>((cols + kWarps * kChunk - 1) / (kWarps * kChunk));
    warp_activations = chunks * tokens * kChunk * 2;
    if (with_norm && tokens <= 8) {
      warp_norm = chunks * kChunk * 4;
      warp_residual = least(chunks, residual_chunks(tokens)) * tokens * kChunk * 4;
    }
    activations = ring_bytes;
    norm = activations + kWarps * warp_activations;
    residual = norm + kWarps * warp_norm;
    partials = residual + kWarps * warp_residual;
    squares = partials + 2 * kWarps * (tokens > 8 ? 16 : 8) * 8 * 4;
    total = squares + kWarps * 16 * 4;
  }
  // How many chunks of it a warp brings at once.
  __host__ __device__ static int residual_chunks(int tokens) { return 16 / tokens; }
  __host__ __device__ static int least(int a, int b) { return a < b ? a : b; }
};

// The groups of 8 weight rows that a block walks over: every gridDim-th, so that what all blocks
// have on its way at a time lies together. Where the kind is gated, each is a gate group and then
// its up group.
struct Walk {
  int groups = 0;  // to walk over, gate and up both counted
  bool gated = false;

  __device__ explicit Walk(const SkinnyArgs& args) {
    const GemmOut kind = args.gemm.kind;
    gated = kind == GemmOut::kSwiGlu || kind == GemmOut::kGeGlu;
    const int all = static_cast<int>((args.out_rows + 7) / 8);
    groups = (all - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) /
             static_cast<int>(gridDim.x);
    if (gated) groups *= 2;
  }
  __device__ int64_t first_out_row(int i) const {
    return int64_t{8} * (blockIdx.x + int64_t{gridDim.x} * (gated ? i / 2 : i));
  }
  // Row g of group i; past the end, the last one.
  __device__ const Element* weight_row(const SkinnyArgs& args, int i, int g) const {
    int64_t row = min(first_out_row(i) + g, args.out_rows - 1);
    if (gated && i % 2 == 1) row += args.out_rows;
    return static_cast<const Element*>(args.gemm.weight) + row * args.gemm.cols;
  }
};

// The next three bring a warp's activations of all its chunks to shared memory, as
// [chunk][half chunk][token][t] of 16 bytes. The residual's squares are added up on the way, in the
// order of skinny_kernel.
template <bool kMany>
__device__ void store_plain(const Gemm& gemm, unsigned char* to, int count, int first_column, int g,
                            int t) {
  const uint32_t address = shared_address(to) + g * 64 + t * 16;
  for (int i = 0; i < 2 * count; ++i) {
    const int64_t column = first_column + i / 2 * (kWarps * kChunk) + i % 2 * 32;
    const bool inside = column < gemm.cols;
#pragma unroll
    for (int tile = 0; tile < (kMany ? 2 : 1); ++tile) {
      const int token = g + 8 * tile;
      const auto* from = static_cast<const Element*>(gemm.x) + token * gemm.x_stride;
      if (token < gemm.tokens) {
        copy_16_async(address + i * gemm.tokens * 64 + tile * 8 * 64, from + (inside ? column : 0),
                      inside);
      }
    }
  }
  end_copy_group();
  wait_for_copy_groups<0>();
}

// For more than 8 tokens: through registers.
__device__ inline void store_normed_many(const Gemm& gemm, unsigned char* to, int count,
                                         int first_column, int g, int t, float (&squares)[2]) {
  constexpr int kAtOnce = 2;
  to += g * 64 + t * 16;
  for (int begin = 0; begin < count; begin += kAtOnce) {
    NormedActivations<true> loaded[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      // Past the last chunk the column is past the last one, and zeros come.
      const int64_t column =
          begin + i < count ? first_column + (begin + i) * (kWarps * kChunk) : gemm.cols;
      loaded[i].load(gemm, column, g);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i >= count) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        unsigned char* at = to + ((begin + i) * 2 + half) * gemm.tokens * 64;
        NormWeights norm;
        norm.load(gemm, first_column + (begin + i) * (kWarps * kChunk) + 32 * half);
        *reinterpret_cast<uint4*>(at) = loaded[i].fragment(half, 0, norm, squares[0]);
        const uint4 high = loaded[i].fragment(half, 1, norm, squares[1]);
        if (g + 8 < gemm.tokens) *reinterpret_cast<uint4*>(at + 8 * 64) = high;
      }
    }
  }
}

// What a warp needs of the norm's weights, to shared memory: begun before the wait.
__device__ inline void request_norm(const Gemm& gemm, uint32_t to, int count, int warp, int lane) {
  for (int i = lane; i < count * 16; i += 32) {
    const int64_t column = (i / 16 * kWarps + warp) * kChunk + i % 16 * 4;
    const bool inside = column < gemm.cols;
    copy_16_async(to + i * 16, gemm.norm + (inside ? column : 0), inside);
  }
  end_copy_group();
}

// For up to 8 tokens: the residual comes by asynchronous copies of all lanes, many chunks at once,
// and is normed from there.
__device__ inline void store_normed(const Gemm& gemm, unsigned char* to, unsigned char* residual,
                                    const unsigned char* norm, int count, int warp, int lane,
                                    float& squares) {
  const int tokens = gemm.tokens, g = lane / 4, t = lane % 4;
  const int at_once = WalkLayout::residual_chunks(tokens);
  const uint32_t residual_address = shared_address(residual);
  to += g * 64 + t * 16;
  for (int begin = 0; begin < count; begin += at_once) {
    const int chunks = min(at_once, count - begin);
    for (int i = lane / 16; i < chunks * tokens; i += 2) {  // half a warp a chunk of one token
      const int chunk = i / tokens, token = i - chunk * tokens;
      const int64_t column = ((begin + chunk) * kWarps + warp) * kChunk + lane % 16 * 4;
      const bool inside = column < gemm.cols;
      copy_16_async(
          residual_address + i * 256 + lane % 16 * 16,
          static_cast<const float*>(gemm.x) + token * gemm.x_stride + (inside ? column : 0),
          inside);
    }
    end_copy_group();
    wait_for_copy_groups<0>();
    __syncwarp();
    if (g < tokens) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto* x = reinterpret_cast<const float4*>(residual + (chunk * tokens + g) * 256 +
                                                          half * 128 + t * 32);
          const auto* n =
              reinterpret_cast<const float4*>(norm + (begin + chunk) * 256 + half * 128 + t * 32);
          *reinterpret_cast<uint4*>(to + ((begin + chunk) * 2 + half) * tokens * 64) =
              normed_fragment(x[0], x[1], n[0], n[1], squares);
        }
      }
    }
    __syncwarp();
  }
}

// A lane's activations of one chunk, as they were stored.
template <bool kMany>
struct StoredActivations {
  uint4 low[2], high[2];

  __device__ void load(const unsigned char* at, int tokens, int g) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      low[half] = high[half] = make_uint4(0, 0, 0, 0);
      const unsigned char* from = at + half * tokens * 64;
      if (g < tokens) low[half] = *reinterpret_cast<const uint4*>(from);
      if constexpr (kMany) {
        if (g + 8 < tokens) high[half] = *reinterpret_cast<const uint4*>(from + 8 * 64);
      }
    }
  }
};

template <bool kMany>
__device__ void store_squares(float (&squares)[2], float* all_squares, int warp, int g, int t) {
#pragma unroll
  for (int tile = 0; tile < (kMany ? 2 : 1); ++tile) {
    float total = squares[tile];
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (t == 0) all_squares[warp * 16 + tile * 8 + g] = total;
  }
}

// Adds up the warps' sums of a group, and writes the results where the group is not a gate. Called
// by the 8 * kWarps threads of the multiplying warps, for groups 0, 1, 2, ...
template <bool kMany, bool kNorm>
class GroupResults {
 public:
  __device__ GroupResults(const SkinnyArgs& args, const Walk& walk, float* partials,
                          const float* squares)
      : args_(args), walk_(walk), partials_(partials), squares_(squares) {}

  __device__ void finish(int group, const float (&sums)[4]) {
    constexpr int kResults = (kMany ? 16 : 8) * 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // The two halves of `partials` take turns, so that one barrier a group is enough.
    float* sums_of_all = partials_ + (group & 1) * (kWarps * kResults);
    float* to = sums_of_all + warp * kResults + 2 * lane;
    *reinterpret_cast<float2*>(to) = make_float2(sums[0], sums[1]);
    if constexpr (kMany) *reinterpret_cast<float2*>(to + 64) = make_float2(sums[2], sums[3]);
    asm volatile("bar.sync 1, %0;" ::"n"(kWarps * 32) : "memory");
    const int token = threadIdx.x / 8;
    if (token >= args_.gemm.tokens) return;
    if constexpr (kNorm) {
      if (group == 0) scale_ = inverse_rms(args_.gemm, squares_, token);
    }
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += sums_of_all[w * kResults + threadIdx.x];
    value *= scale_;
    if (walk_.gated && group % 2 == 0) {
      gate_ = value;
      return;
    }
    const int64_t row = walk_.first_out_row(group) + threadIdx.x % 8;
    if (row < args_.out_rows) write_result(args_.gemm, token, row, gate_, value);
  }

 private:
  const SkinnyArgs& args_;
  const Walk& walk_;
  float* partials_;
  const float* squares_;
  float scale_ = 1.0f;
  float gate_ = 0.0f;
};

// A ninth warp requests the weights in stages of 8 rows and, for each of the others, kWide chunks.
template <int kWide>
struct Stage {
  static constexpr int kColumns = kWide * kWarps * kChunk;
  static constexpr int kPitch = kColumns * 2 + 64;  // bytes; rows are half the banks apart
  static constexpr int kBytes = 8 * kPitch;
};

inline constexpr int kMaxDepth = 24;

template <int kWide, bool kMany, bool kNorm>
__global__ void __launch_bounds__(kWarps * 32 + 32, kMany ? 1 : 3)
    skinny_walk_kernel(const __grid_constant__ SkinnyArgs args) {
#if __CUDA_ARCH__ >= 900
  using Stage = Stage<kWide>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ uint64_t barriers[2 * kMaxDepth];  // full, empty
  const Gemm& gemm = args.gemm;
  const int depth = args.depth;
  const WalkLayout layout(depth * Stage::kBytes, gemm.cols, gemm.tokens, kNorm);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t full = shared_address(barriers);
  const uint32_t empty = full + 8 * depth;
  const Walk walk(args);
  const int cols = static_cast<int>(gemm.cols);
  const int stages = (cols + Stage::kColumns - 1) / Stage::kColumns;
  if (threadIdx.x == kWarps * 32) {
    for (int i = 0; i < depth; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, kWarps);
    }
    barriers_visible_to_copies();
  }
  __syncthreads();

  if (warp == kWarps) {
    let_next_kernel_start();
    const uint32_t ring = shared_address(shared);
    const uint64_t policy = evict_first_policy();
    int slot = 0;
    uint32_t parity = 1;
    for (int group = 0; group < walk.groups; ++group) {
      const Element* row = walk.weight_row(args, group, lane % 8);
      for (int stage = 0; stage < stages; ++stage) {
        const int bytes = 2 * min(Stage::kColumns, cols - stage * Stage::kColumns);
        barrier_wait(empty + 8 * slot, parity);
        if (lane == 0) barrier_arrive_expecting(full + 8 * slot, 8 * bytes);
        __syncwarp();
        if (lane < 8) {
          copy_bulk_async(ring + slot * Stage::kBytes + lane * Stage::kPitch,
                          row + stage * Stage::kColumns, bytes, full + 8 * slot, policy);
        }
        if (++slot == depth) {
          slot = 0;
          parity ^= 1;
        }
      }
    }
    return;
  }

  const int g = lane / 4, t = lane % 4;
  const int chunks = (cols + kChunk - 1) / kChunk;
  const int count = chunks > warp ? (chunks - warp + kWarps - 1) / kWarps : 0;
  const int first_column = warp * kChunk + 8 * t;
  unsigned char* activations = shared + layout.activations + warp * layout.warp_activations;
  unsigned char* norm = shared + layout.norm + warp * layout.warp_norm;
  if constexpr (kNorm && !kMany) {
    request_norm(gemm, shared_address(norm), count, warp, lane);
  }
  wait_for_previous_kernel();
  float* all_squares = reinterpret_cast<float*>(shared + layout.squares);
  float squares[2] = {};
  if constexpr (!kNorm) {
    store_plain<kMany>(gemm, activations, count, first_column, g, t);
  } else if constexpr (kMany) {
    store_normed_many(gemm, activations, count, first_column, g, t, squares);
  } else {
    store_normed(gemm, activations, shared + layout.residual + warp * layout.warp_residual, norm,
                 count, warp, lane, squares[0]);
  }
  if constexpr (kNorm) store_squares<kMany>(squares, all_squares, warp, g, t);
  GroupResults<kMany, kNorm> results(args, walk, reinterpret_cast<float*>(shared + layout.partials),
                                     all_squares);
  const unsigned char* slots = shared + g * Stage::kPitch + first_column * 2;
  int slot = 0;
  uint32_t parity = 0;
  for (int group = 0; group < walk.groups; ++group) {
    float sums[4] = {};
    const unsigned char* at = activations + g * 64 + t * 16;
    for (int stage = 0; stage < stages; ++stage) {
      StoredActivations<kMany> x[kWide];
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        if (stage * kWide + i < count) x[i].load(at, gemm.tokens, g);
        at += 2 * 64 * gemm.tokens;
      }
      barrier_wait(full + 8 * slot, parity);
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        if (stage * kWide + i >= count) break;
        const int column = first_column + (stage * kWide + i) * (kWarps * kChunk);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint4 w = *reinterpret_cast<const uint4*>(slots + slot * Stage::kBytes +
                                                    i * (kWarps * kChunk * 2) + half * 64);
          // What lies past the last column is not zero.
          if (column + 32 * half >= cols) w = make_uint4(0, 0, 0, 0);
          const uint4 low = x[i].low[half], high = x[i].high[half];
          multiply_add(sums, low.x, high.x, low.y, high.y, w.x, w.y);
          multiply_add(sums, low.z, high.z, low.w, high.w, w.z, w.w);
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + 8 * slot);
      if (++slot == depth) {
        slot = 0;
        parity ^= 1;
      }
    }
    results.finish(group, sums);
  }
#endif
}

}  // namespace trireme::cuda
