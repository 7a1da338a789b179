// The skinny product with the activations resident in shared memory: a block walks over its weight
// rows 8 at a time, all columns of them, so that what is on its way from memory is contiguous. For
// activations that fit; the sums run in the order of skinny_gemm.cuh, to the same bits.
#pragma once

#include "kernels/cuda/skinny_gemm.cuh"

namespace trireme::cuda {

// Bytes of a block's shared memory: [ring][activations][partial sums, twice][sums of squares].
struct WalkLayout {
  int activations = 0;  // offsets
  int partials = 0;
  int squares = 0;
  int total = 0;

  __host__ __device__ WalkLayout(int depth, int64_t cols, int tokens) {
    const int chunks = static_cast<int>((cols + kChunk - 1) / kChunk);
    activations = kWarps * depth * kSlotBytes;
    partials = activations + (chunks + kWarps - 1) / kWarps * kWarps * tokens * kChunk * 2;
    squares = partials + 2 * kWarps * (tokens > 8 ? 16 : 8) * 8 * 4;
    total = squares + kWarps * 16 * 4;
  }
};

// Where in the weight a warp's lane is: chunk after chunk of its columns, group after group.
class WalkCursor {
 public:
  __device__ WalkCursor(const SkinnyArgs& args, int first_group, int groups, int count, int g,
                        int first_column)
      : args_(args), left_(groups), count_(count), g_(g), first_column_(first_column) {
    group_ = first_group;
    if (count == 0) left_ = 0;
    start_group();
  }
  __device__ bool done() const { return left_ == 0; }
  __device__ void request(uint32_t to, uint64_t policy) {
    const int cols = static_cast<int>(args_.gemm.cols);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool inside = column_ + 32 * half < cols;
      copy_16_async(to + half * (kSlotBytes / 2), row_ + (inside ? column_ + 32 * half : 0), inside,
                    policy);
    }
    column_ += kWarps * kChunk;
    if (++i_ == count_) {
      ++group_;
      if (--left_ > 0) start_group();
    }
  }

 private:
  __device__ void start_group() {
    const GemmOut kind = args_.gemm.kind;
    const bool gated = kind == GemmOut::kSwiGlu || kind == GemmOut::kGeGlu;
    int64_t row = int64_t{8} * (gated ? group_ / 2 : group_) + g_;
    row = min(row, args_.out_rows - 1) + (gated && group_ % 2 == 1 ? args_.out_rows : 0);
    row_ = static_cast<const __nv_bfloat16*>(args_.gemm.weight) + row * args_.gemm.cols;
    i_ = 0;
    column_ = first_column_;
  }
  const SkinnyArgs& args_;
  int left_;  // groups yet to be requested, this one included
  const int count_;
  const int g_;
  const int first_column_;
  int group_ = 0;
  int i_ = 0;
  int column_ = 0;
  const __nv_bfloat16* row_ = nullptr;
};

// Brings a lane's activations of all its warp's chunks to shared memory: [chunk][half][token][t].
template <bool kMany, bool kNorm>
__device__ void store_activations(const Gemm& gemm, unsigned char* to, int count, int first_column,
                                  int g, int t, float (&squares)[2]) {
  using Activations = std::conditional_t<kNorm, NormedActivations<kMany>, PlainActivations<kMany>>;
  constexpr int kAtOnce = kNorm ? (kMany ? 1 : 2) : 4;
  const int half_bytes = gemm.tokens * 64;
  for (int begin = 0; begin < count; begin += kAtOnce) {
    Activations loaded[kAtOnce];
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
        unsigned char* at = to + ((begin + i) * 2 + half) * half_bytes + g * 64 + t * 16;
        const uint4 low = loaded[i].fragment(half, 0, squares[0]);
        if (g < gemm.tokens) *reinterpret_cast<uint4*>(at) = low;
        if constexpr (kMany) {
          const uint4 high = loaded[i].fragment(half, 1, squares[1]);
          if (g + 8 < gemm.tokens) *reinterpret_cast<uint4*>(at + 8 * 64) = high;
        }
      }
    }
  }
}

template <int kDepth, bool kMany, bool kNorm>
__global__ void __launch_bounds__(kWarps * 32)
    skinny_walk_kernel(const __grid_constant__ SkinnyArgs args) {
  extern __shared__ __align__(16) unsigned char shared[];
  if (args.early) let_next_kernel_start();
  const Gemm& gemm = args.gemm;
  const WalkLayout layout(kDepth, gemm.cols, gemm.tokens);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const bool gated = gemm.kind == GemmOut::kSwiGlu || gemm.kind == GemmOut::kGeGlu;
  const int parts = gated ? 2 : 1;
  const int out_groups = static_cast<int>((args.out_rows + 7) / 8);
  const int first_group = static_cast<int>(int64_t{out_groups} * blockIdx.x / gridDim.x) * parts;
  const int end_group =
      static_cast<int>(int64_t{out_groups} * (blockIdx.x + 1) / gridDim.x) * parts;

  const int chunks = static_cast<int>((gemm.cols + kChunk - 1) / kChunk);
  const int count = chunks > warp ? (chunks - warp + kWarps - 1) / kWarps : 0;
  const int first_column = warp * kChunk + 8 * t;
  const uint4* slots = reinterpret_cast<const uint4*>(shared + warp * (kDepth * kSlotBytes)) + lane;
  const uint32_t slots_address = static_cast<uint32_t>(__cvta_generic_to_shared(slots));
  const uint64_t policy = evict_first_policy();
  WalkCursor cursor(args, first_group, end_group - first_group, count, g, first_column);
  const auto request = [&](int slot) {
    if (!cursor.done()) {
      cursor.request(slots_address + slot * kSlotBytes, policy);
      if (warp == 0 && cursor.done()) let_next_kernel_start();
    }
    end_copy_group();
  };
#pragma unroll 1
  for (int slot = 0; slot < kDepth; ++slot) request(slot);

  wait_for_previous_kernel();
  unsigned char* activations = shared + layout.activations +
                               warp * ((chunks + kWarps - 1) / kWarps * gemm.tokens * kChunk * 2);
  float* all_squares = reinterpret_cast<float*>(shared + layout.squares);
  float squares[2] = {};
  store_activations<kMany, kNorm>(gemm, activations, count, first_column, g, t, squares);
  if constexpr (kNorm) {
#pragma unroll
    for (int tile = 0; tile < (kMany ? 2 : 1); ++tile) {
      float total = squares[tile];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      if (t == 0) all_squares[warp * 16 + tile * 8 + g] = total;
    }
  }

  constexpr int kResults = (kMany ? 16 : 8) * 8;  // of a group
  float* partials = reinterpret_cast<float*>(shared + layout.partials);
  const int out_token = threadIdx.x / 8, out_n = threadIdx.x % 8;
  const int half_bytes = gemm.tokens * 64;
  float scale = 1.0f, gate = 0.0f;
  int slot = 0;
  for (int group = first_group; group < end_group; ++group) {
    float sums[4] = {};
    const unsigned char* x = activations + g * 64 + t * 16;
    for (int i = 0; i < count; ++i) {
      uint4 low[2], high[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        low[half] = high[half] = make_uint4(0, 0, 0, 0);
        if (g < gemm.tokens) low[half] = *reinterpret_cast<const uint4*>(x + half * half_bytes);
        if constexpr (kMany) {
          if (g + 8 < gemm.tokens) {
            high[half] = *reinterpret_cast<const uint4*>(x + half * half_bytes + 8 * 64);
          }
        }
      }
      wait_for_copy_groups<kDepth - 1>();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 w = slots[slot * (kSlotBytes / 16) + half * 32];
        multiply_add(sums, low[half].x, high[half].x, low[half].y, high[half].y, w.x, w.y);
        multiply_add(sums, low[half].z, high[half].z, low[half].w, high[half].w, w.z, w.w);
      }
      request(slot);
      slot = slot + 1 == kDepth ? 0 : slot + 1;
      x += 2 * half_bytes;
    }
    // The two halves of `partials` take turns, so that one barrier a group is enough.
    float* sums_of_all = partials + (group & 1) * (kWarps * kResults);
    float* to = sums_of_all + warp * kResults + g * 8 + 2 * t;
    *reinterpret_cast<float2*>(to) = make_float2(sums[0], sums[1]);
    if constexpr (kMany) *reinterpret_cast<float2*>(to + 64) = make_float2(sums[2], sums[3]);
    __syncthreads();
    if (out_token >= gemm.tokens) continue;
    if constexpr (kNorm) {
      if (group == first_group) scale = inverse_rms(gemm, all_squares, out_token);
    }
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += sums_of_all[w * kResults + threadIdx.x];
    value *= scale;
    if (gated && group % 2 == 0) {
      gate = value;
      continue;
    }
    const int64_t row = int64_t{8} * (group / parts) + out_n;
    if (row < args.out_rows) write_result(gemm, out_token, row, gated ? gate : value, value);
  }
}

}  // namespace trireme::cuda
