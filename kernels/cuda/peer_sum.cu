#include "kernels/cuda/peer_sum.h"

#include <cuda_bf16.h>

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/launch_early.h"
#include "kernels/cuda/peer_lanes.cuh"

namespace trireme::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMostPerThread = 4;  // vectors of 8 columns: up to 16384 columns

// A vector of 16 bytes as its elements.
template <typename T>
struct Elements;

template <>
struct Elements<__nv_bfloat16> {
  static constexpr int kCount = 8;
  __device__ static void add(float (&sum)[kCount], uint4 vector) {
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(words[i]));
      sum[2 * i] += pair.x;
      sum[2 * i + 1] += pair.y;
    }
  }
  __device__ static uint4 round(const float (&sum)[kCount]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
      words[i] = reinterpret_cast<const uint32_t&>(pair);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

template <>
struct Elements<float> {
  static constexpr int kCount = 4;
  __device__ static void add(float (&sum)[kCount], uint4 vector) {
    sum[0] += __uint_as_float(vector.x);
    sum[1] += __uint_as_float(vector.y);
    sum[2] += __uint_as_float(vector.z);
    sum[3] += __uint_as_float(vector.w);
  }
  __device__ static uint4 round(const float (&sum)[kCount]) {
    return make_uint4(__float_as_uint(sum[0]), __float_as_uint(sum[1]), __float_as_uint(sum[2]),
                      __float_as_uint(sum[3]));
  }
};

// The sum of vector i over all ranks; `own` is this rank's.
template <typename T, int kRanks>
__device__ void sum_of(const PeerLanes& lanes, const Lane& lane, int i, uint4 own,
                       float (&sum)[Elements<T>::kCount]) {
  uint4 vectors[kRanks];
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) vectors[rank] = own;
  lane.receive(i, vectors);
#pragma unroll
  for (int k = 0; k < Elements<T>::kCount; ++k) sum[k] = 0.0f;
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    if (rank < lanes.size) Elements<T>::add(sum, vectors[rank]);
  }
}

// With two shots vector i of `count` is added by this rank.
__device__ int adder_of(const PeerLanes& lanes, int i, int count) {
  return i / ((count + lanes.size - 1) / lanes.size);
}

template <int kRanks, int kPerThread, bool kTwoShots>
__global__ void __launch_bounds__(kThreads)
    sum_norm_kernel(const __grid_constant__ PeerSumNorm args) {
  using Vector = Elements<__nv_bfloat16>;
  let_next_kernel_start();
  const int vectors = args.cols / 8;
  const auto index = [](int k) { return static_cast<int>(threadIdx.x + k * blockDim.x); };
  float4 weight[kPerThread][2];
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    if (args.weight == nullptr || index(k) >= vectors) continue;
    weight[k][0] = __ldg(reinterpret_cast<const float4*>(args.weight) + 2 * index(k));
    weight[k][1] = __ldg(reinterpret_cast<const float4*>(args.weight) + 2 * index(k) + 1);
  }
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const Lane lane(args.lanes, static_cast<int>(blockIdx.x));
  const uint4* delta = reinterpret_cast<const uint4*>(
      static_cast<const __nv_bfloat16*>(args.delta) + row * args.delta_stride);
  uint4 own[kPerThread];
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = index(k);
    if (i < vectors) own[k] = delta[i];
  }
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = index(k);
    if (i >= vectors) continue;
    if constexpr (kTwoShots) {
      const int adder = adder_of(args.lanes, i, vectors);
      if (adder != args.lanes.rank) lane.push_to(adder, i, own[k]);
    } else {
      lane.push(i, own[k]);
    }
  }
  float4* residual = reinterpret_cast<float4*>(args.residual + row * args.cols);
  float4 kept[kPerThread][2];
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = index(k);
    if (i >= vectors) continue;
    kept[k][0] = residual[2 * i];
    kept[k][1] = residual[2 * i + 1];
  }
  if constexpr (kTwoShots) {
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const int i = index(k);
      if (i >= vectors || adder_of(args.lanes, i, vectors) != args.lanes.rank) continue;
      float sum[Vector::kCount];
      sum_of<__nv_bfloat16, kRanks>(args.lanes, lane, i, own[k], sum);
      own[k] = Vector::round(sum);
      lane.push_sum(i, own[k]);
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = index(k);
    if (i >= vectors) continue;
    float sum[Vector::kCount];
    if constexpr (kTwoShots) {
      if (adder_of(args.lanes, i, vectors) != args.lanes.rank) own[k] = lane.receive_sum(i);
#pragma unroll
      for (int e = 0; e < Vector::kCount; ++e) sum[e] = 0.0f;
      Vector::add(sum, own[k]);
    } else {
      sum_of<__nv_bfloat16, kRanks>(args.lanes, lane, i, own[k], sum);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4& v = kept[k][half];
      v.x += sum[4 * half];
      v.y += sum[4 * half + 1];
      v.z += sum[4 * half + 2];
      v.w += sum[4 * half + 3];
      residual[2 * i + half] = v;
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
  }
  lane.finish();
  if (args.weight == nullptr) return;
  const float inverse = rsqrtf(block_sum(squares) / static_cast<float>(args.cols) + args.eps);
  uint4* out = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.out) + row * args.cols);
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    const int i = index(k);
    if (i >= vectors) continue;
    const float4 a = kept[k][0], b = kept[k][1], wa = weight[k][0], wb = weight[k][1];
    const float normed[Vector::kCount] = {
        a.x * inverse * wa.x, a.y * inverse * wa.y, a.z * inverse * wa.z, a.w * inverse * wa.w,
        b.x * inverse * wb.x, b.y * inverse * wb.y, b.z * inverse * wb.z, b.w * inverse * wb.w};
    out[i] = Vector::round(normed);
  }
}

// Block b works on vectors b * per_lane and the following.
template <typename T, int kRanks, bool kTwoShots>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ PeerSum args, int64_t vectors, int per_lane) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const Lane lane(args.lanes, static_cast<int>(blockIdx.x));
  const int64_t first = int64_t{blockIdx.x} * per_lane;
  const int count = static_cast<int>(min(vectors - first, int64_t{per_lane}));
  uint4* data = static_cast<uint4*>(args.data) + first;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    if constexpr (kTwoShots) {
      const int adder = adder_of(args.lanes, i, count);
      if (adder != args.lanes.rank) lane.push_to(adder, i, data[i]);
    } else {
      lane.push(i, data[i]);
    }
  }
  for (int i = threadIdx.x; i < count; i += kThreads) {
    if (kTwoShots && adder_of(args.lanes, i, count) != args.lanes.rank) continue;
    float sum[Elements<T>::kCount];
    sum_of<T, kRanks>(args.lanes, lane, i, data[i], sum);
    data[i] = Elements<T>::round(sum);
    if constexpr (kTwoShots) lane.push_sum(i, data[i]);
  }
  if constexpr (kTwoShots) {
    for (int i = threadIdx.x; i < count; i += kThreads) {
      if (adder_of(args.lanes, i, count) != args.lanes.rank) data[i] = lane.receive_sum(i);
    }
  }
  lane.finish();
}

// `ranks` at compile time: those that there are, rounded up.
template <typename Launch>
void for_ranks(int ranks, Launch launch) {
  if (ranks <= 2) return launch.template operator()<2>();
  if (ranks <= 4) return launch.template operator()<4>();
  launch.template operator()<8>();
}

int64_t lane_vectors(const PeerLanes& lanes) { return lanes.packets / 2; }

}  // namespace

bool peer_sum_norm_supports(const PeerLanes& lanes, int64_t rows, int64_t cols) {
  return lanes.size > 1 && rows <= lanes.lanes && cols % 8 == 0 &&
         cols / 8 <= std::min<int64_t>(lane_vectors(lanes), kThreads * kMostPerThread);
}

void launch_peer_sum_norm(const PeerSumNorm& sum, bool two_shots, cudaStream_t stream) {
  if (sum.rows == 0) return;
  if (!peer_sum_norm_supports(sum.lanes, sum.rows, sum.cols) || sum.delta_stride % 8 != 0) {
    fail_internal("sum over ranks: more than the lanes take");
  }
  const int vectors = sum.cols / 8;
  const int threads = std::min((vectors + 31) / 32 * 32, kThreads);
  const int per_thread = (vectors + threads - 1) / threads;
  for_ranks(sum.lanes.size, [&]<int kRanks>() {
    const auto launch = [&]<int kPerThread>() {
      launch_early(two_shots ? sum_norm_kernel<kRanks, kPerThread, true>
                             : sum_norm_kernel<kRanks, kPerThread, false>,
                   dim3(static_cast<unsigned>(sum.rows)), threads, stream, sum);
    };
    if (per_thread <= 1) {
      launch.template operator()<1>();
    } else if (per_thread <= 2) {
      launch.template operator()<2>();
    } else {
      launch.template operator()<kMostPerThread>();
    }
  });
}

bool peer_sum_supports(const PeerLanes& lanes, int64_t bytes, DType dtype) {
  return lanes.size > 1 && (dtype == DType::kF32 || dtype == DType::kBF16) && bytes % 16 == 0 &&
         bytes <= lane_vectors(lanes) * 16 * lanes.lanes;
}

void launch_peer_sum(const PeerSum& sum, bool two_shots, cudaStream_t stream) {
  if (sum.bytes == 0) return;
  if (!peer_sum_supports(sum.lanes, sum.bytes, sum.dtype) ||
      reinterpret_cast<uintptr_t>(sum.data) % 16 != 0) {
    fail_internal("sum over ranks: more than the lanes take, or not aligned");
  }
  const int64_t vectors = sum.bytes / 16;
  const int64_t least = (vectors + lane_vectors(sum.lanes) - 1) / lane_vectors(sum.lanes);
  const int64_t wanted =
      std::clamp<int64_t>(sum.blocks, least, std::min<int64_t>(sum.lanes.lanes, vectors));
  const auto per_lane = static_cast<int>((vectors + wanted - 1) / wanted);
  const auto blocks = static_cast<unsigned>((vectors + per_lane - 1) / per_lane);
  for_ranks(sum.lanes.size, [&]<int kRanks>() {
    const auto launch = [&]<typename T>() {
      launch_early(two_shots ? sum_kernel<T, kRanks, true> : sum_kernel<T, kRanks, false>,
                   dim3(blocks), kThreads, stream, sum, vectors, per_lane);
    };
    if (sum.dtype == DType::kF32) {
      launch.template operator()<float>();
    } else {
      launch.template operator()<__nv_bfloat16>();
    }
  });
}

}  // namespace trireme::cuda
