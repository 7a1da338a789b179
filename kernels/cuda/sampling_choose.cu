#include "kernels/cuda/check.h"
#include "kernels/cuda/load_kernel.h"
#include "kernels/cuda/peer_lanes.cuh"
#include "kernels/cuda/sampling.h"

namespace trireme::cuda {
namespace {

__device__ uint4 bits_of(const LogitAnswer& answer) {
  const auto value = static_cast<uint64_t>(answer.value);
  return make_uint4(static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32),
                    __float_as_uint(answer.logit), static_cast<uint32_t>(answer.token));
}

__device__ Scored scored(uint4 bits) {
  return {__longlong_as_double(static_cast<int64_t>(bits.x | uint64_t{bits.y} << 32)),
          static_cast<int32_t>(bits.w)};
}

// One block, a thread a task; the scores are compared as launch_logit_scan compares them.
template <int kRanks>
__global__ void __launch_bounds__(ChosenTokens::kMost)
    choose_kernel(const __grid_constant__ ChooseTokens args) {
  const int i = static_cast<int>(threadIdx.x);
  const bool mine = i < args.count;
  uint4 answers[kRanks];
  if (mine) {
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) answers[rank] = bits_of(args.answers[i]);
  }
  if constexpr (kRanks > 1) {
    const Lane lane(args.lanes, 0);
    if (mine) {
      lane.push(i, answers[0]);
      lane.receive(i, answers);
    }
    lane.finish();
  }
  if (mine) {
    Scored best = scored(answers[0]);
#pragma unroll
    for (int rank = 1; rank < kRanks; ++rank) {
      const Scored other = scored(answers[rank]);
      if (rank < args.lanes.size && better(other, best)) best = other;
    }
    args.newest[args.tasks[i].slot] = max(best.token, 0);
    args.chosen->tokens[i] = best.token;
    __threadfence_system();
  }
  __syncthreads();
  if (i == 0) *static_cast<volatile uint64_t*>(&args.chosen->number) = args.number;
}

auto* kernel_for(int ranks) {
  return ranks == 1   ? choose_kernel<1>
         : ranks <= 2 ? choose_kernel<2>
         : ranks <= 4 ? choose_kernel<4>
                      : choose_kernel<8>;
}

}  // namespace

void load_choose(int ranks) { load_kernel(kernel_for(ranks)); }

void launch_choose(const ChooseTokens& choose, cudaStream_t stream) {
  if (choose.count < 1 || choose.count > ChosenTokens::kMost) {
    fail_internal("sampling: 1 to 256 choices at a time");
  }
  kernel_for(choose.lanes.size)<<<1, ChosenTokens::kMost, 0, stream>>>(choose);
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace trireme::cuda
