// A million small sums between GPUs through peer memory, each checked by every rank, with random
// stalls in front of some; replayed from graphs: with addition and norm, and plain. Under launch/mpirun; 4 ranks may share 2 GPUs, and
// then take turns on them. A plain program: exits 1 if anything is wrong, 77 without a GPU.
//   peer_sum_mpi_test [SUMS]
#include <cuda_bf16.h>

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/peer_sum.h"
#include "tests/dist/peer_world.h"

namespace trireme::cuda {
namespace {

// The term of a rank in sum number `sum`, exact in bf16. Of both signs and sizes from 2^-15 to 2^21:
// added in another order than the ranks', many sums would differ.
__host__ __device__ inline float term_of(uint64_t sum, int rank, int i) {
  uint64_t x = sum * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(rank) * 0xbf58476d1ce4e5b9ull +
               static_cast<uint64_t>(i) * 0x94d049bb133111ebull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27;
  return ldexpf(static_cast<float>(x & 0xff) - 127.5f, static_cast<int>(x >> 8 & 7) * 4 - 14);
}

// Of the norm.
__host__ __device__ inline float weight_of(int col) { return 0.5f + static_cast<float>(col % 7); }
constexpr float kEps = 1e-5f;

struct State {
  uint64_t sum = 0;  // number of the sum
  uint64_t mismatches = 0;
};

// Every 64th sum or so is late by up to 60 us, on each rank at other times.
__global__ void fill_kernel(const State* state, int rank, int cols, __nv_bfloat16* delta,
                            float* residual, __nv_bfloat16* out) {
  const uint64_t sum = state->sum;
  const auto draw = static_cast<uint32_t>((sum * 2654435761u + rank * 40503u) >> 7);
  if (draw % 64 == 0) {
    const long long until = clock64() + draw % 100000;
    while (clock64() < until) {
    }
  }
  for (int i = threadIdx.x; i < cols; i += blockDim.x) {
    const int64_t at = int64_t{blockIdx.x} * cols + i;
    delta[at] = __float2bfloat16_rn(term_of(sum, rank, static_cast<int>(at)));
    residual[at] = 1.0f;
    out[at] = __float2bfloat16_rn(-77.0f);
  }
}

__device__ float expected_sum(uint64_t sum, int ranks, int at, bool two_shots) {
  float expected = 0.0f;
  for (int rank = 0; rank < ranks; ++rank) {
    expected += __bfloat162float(__float2bfloat16_rn(term_of(sum, rank, at)));
  }
  return two_shots ? __bfloat162float(__float2bfloat16_rn(expected)) : expected;
}

__device__ void count_mismatch(State* state) {
  atomicAdd(reinterpret_cast<unsigned long long*>(&state->mismatches), 1ull);
}

// The sums exactly; the norm within the rounding of an element.
__global__ void check_kernel(State* state, int ranks, int cols, bool two_shots,
                             const float* residual, const __nv_bfloat16* out) {
  __shared__ float squares;
  const uint64_t sum = state->sum;
  if (threadIdx.x == 0) squares = 0.0f;
  __syncthreads();
  float mine = 0.0f;
  for (int i = threadIdx.x; i < cols; i += blockDim.x) {
    const int64_t at = int64_t{blockIdx.x} * cols + i;
    const float value = 1.0f + expected_sum(sum, ranks, static_cast<int>(at), two_shots);
    if (residual[at] != value) count_mismatch(state);
    mine += value * value;
  }
  atomicAdd(&squares, mine);
  __syncthreads();
  const float scale = rsqrtf(squares / static_cast<float>(cols) + kEps);
  for (int i = threadIdx.x; i < cols; i += blockDim.x) {
    const int64_t at = int64_t{blockIdx.x} * cols + i;
    const float value = residual[at] * scale * weight_of(i);
    if (!(fabsf(__bfloat162float(out[at]) - value) <= fabsf(value) * 0.0045f)) {
      count_mismatch(state);
    }
  }
}

__global__ void check_plain_kernel(State* state, int ranks, int cols, bool two_shots,
                                   const __nv_bfloat16* data) {
  const uint64_t sum = state->sum;
  for (int i = threadIdx.x; i < cols; i += blockDim.x) {
    const int64_t at = int64_t{blockIdx.x} * cols + i;
    const float expected = expected_sum(sum, ranks, static_cast<int>(at), two_shots);
    if (__bfloat162float(data[at]) != __bfloat162float(__float2bfloat16_rn(expected))) {
      count_mismatch(state);
    }
  }
}

__global__ void next_kernel(State* state) { ++state->sum; }

int run(PeerWorld& world, uint64_t sums) {
  constexpr int64_t kWidth = 4096;
  const PeerLanes lanes = world.lanes(kWidth * 2);
  cudaStream_t stream = nullptr;
  TRIREME_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  constexpr int kMostRows = 16;
  void *delta = nullptr, *residual = nullptr, *out = nullptr, *weight = nullptr, *state = nullptr;
  TRIREME_CUDA(cudaMalloc(&delta, kMostRows * kWidth * 2));
  TRIREME_CUDA(cudaMalloc(&residual, kMostRows * kWidth * 4));
  TRIREME_CUDA(cudaMalloc(&out, kMostRows * kWidth * 2));
  TRIREME_CUDA(cudaMalloc(&weight, kWidth * 4));
  TRIREME_CUDA(cudaMalloc(&state, sizeof(State)));
  std::vector<float> weights(kWidth);
  for (int i = 0; i < kWidth; ++i) weights[static_cast<size_t>(i)] = weight_of(i);
  TRIREME_CUDA(cudaMemcpy(weight, weights.data(), kWidth * 4, cudaMemcpyHostToDevice));
  TRIREME_CUDA(cudaMemset(state, 0, sizeof(State)));
  TRIREME_CUDA(cudaDeviceSynchronize());
  auto* shared = static_cast<State*>(state);

  struct Kind {
    int rows, cols;
    bool two_shots;
    bool plain = false;
  };
  const Kind kinds[] = {
      {1, 4096, false}, {1, 4096, true},        {2, 2048, false},      {5, 520, true},
      {1, 8, false},    {7, 64, true},          {16, 4096, false},     {1, 4096, false, true},
      {3, 72, true, true}, {16, 4096, true, true}};
  constexpr int kPerGraph = 100;
  std::vector<cudaGraphExec_t> graphs;
  for (const Kind& kind : kinds) {
    PeerSumNorm args;
    args.lanes = lanes;
    args.delta = delta;
    args.delta_stride = kind.cols;
    args.residual = static_cast<float*>(residual);
    args.weight = static_cast<const float*>(weight);
    args.eps = kEps;
    args.rows = kind.rows;
    args.cols = kind.cols;
    args.out = out;
    PeerSum plain;
    plain.lanes = lanes;
    plain.data = delta;
    plain.dtype = DType::kBF16;
    plain.bytes = int64_t{2} * kind.rows * kind.cols;
    auto* elements = static_cast<__nv_bfloat16*>(delta);
    auto* normed = static_cast<__nv_bfloat16*>(out);
    auto* sums_to = static_cast<float*>(residual);
    cudaGraph_t graph = nullptr;
    TRIREME_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kPerGraph; ++i) {
      fill_kernel<<<kind.rows, 256, 0, stream>>>(shared, lanes.rank, kind.cols, elements, sums_to,
                                                 normed);
      if (kind.plain) {
        launch_peer_sum(plain, kind.two_shots, stream);
        check_plain_kernel<<<kind.rows, 256, 0, stream>>>(shared, lanes.size, kind.cols,
                                                          kind.two_shots, elements);
      } else {
        launch_peer_sum_norm(args, kind.two_shots, stream);
        check_kernel<<<kind.rows, 256, 0, stream>>>(shared, lanes.size, kind.cols, kind.two_shots,
                                                    sums_to, normed);
      }
      next_kernel<<<1, 1, 0, stream>>>(shared);
    }
    TRIREME_CUDA(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t replay = nullptr;
    TRIREME_CUDA(cudaGraphInstantiate(&replay, graph, 0));
    TRIREME_CUDA(cudaGraphDestroy(graph));
    graphs.push_back(replay);
  }
  std::mt19937_64 random(world.seed());  // the same on all ranks
  for (uint64_t done = 0; done < sums; done += kPerGraph) {
    // Mostly the size of one stream's decode step.
    const size_t kind = random() % 3 != 0 ? random() % 2 : random() % graphs.size();
    TRIREME_CUDA(cudaGraphLaunch(graphs[kind], stream));
    if (random() % 16 == 0) TRIREME_CUDA(cudaStreamSynchronize(stream));
  }
  TRIREME_CUDA(cudaStreamSynchronize(stream));
  State result;
  TRIREME_CUDA(cudaMemcpy(&result, state, sizeof result, cudaMemcpyDeviceToHost));
  std::printf("rank %d of %d: %llu sums, %llu numbers wrong\n", lanes.rank, lanes.size,
              static_cast<unsigned long long>(result.sum),
              static_cast<unsigned long long>(result.mismatches));
  for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
  return result.mismatches == 0 && result.sum >= sums ? 0 : 1;
}

}  // namespace
}  // namespace trireme::cuda

int main(int argc, char** argv) {
  const auto world = trireme::make_peer_world(argc, argv, 4096 * 2);
  if (world == nullptr) return 77;
  const uint64_t sums =
      argc > 1 ? std::strtoull(argv[1], nullptr, 10) : (world->shares_gpus() ? 2'000 : 1'000'000);
  return world->agree(trireme::cuda::run(*world, sums));
}
