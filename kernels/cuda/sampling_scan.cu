#include "kernels/cuda/check.h"
#include "kernels/cuda/load_kernel.h"
#include "kernels/cuda/sampling_tile.cuh"

namespace trireme::cuda {
namespace {

constexpr int kWarps = kScanThreads / 32;

__device__ double score_of(const LogitAnswer& answer) { return __longlong_as_double(answer.value); }

__device__ bool better_answer(const LogitAnswer& a, const LogitAnswer& b) {
  return better(Scored{score_of(a), a.token}, Scored{score_of(b), b.token});
}

// a and b of the same kind as one.
__device__ LogitAnswer merge(int32_t kind, const LogitAnswer& a, const LogitAnswer& b) {
  if (kind == LogitTask::kMass) return {a.value + b.value, 0.0f, -1};
  return better_answer(b, a) ? b : a;
}

__device__ LogitAnswer merge_lanes(int32_t kind, LogitAnswer mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    LogitAnswer other;
    other.value = __shfl_xor_sync(kAllLanes, mine.value, offset);
    other.logit = __shfl_xor_sync(kAllLanes, mine.logit, offset);
    other.token = __shfl_xor_sync(kAllLanes, mine.token, offset);
    mine = merge(kind, mine, other);
  }
  return mine;
}

__device__ LogitAnswer nothing(int32_t kind) {
  if (kind == LogitTask::kMass) return {0, 0.0f, -1};
  return {__double_as_longlong(-std::numeric_limits<double>::infinity()), 0.0f, -1};
}

// The thread's best logit; of equal ones the first. token -1: none above -inf.
__device__ Candidate thread_best(const float (&values)[kPerThread], int32_t first) {
  float best = kNoLogit;
  int at = -1;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (values[i] > best) {
      best = values[i];
      at = i;
    }
  }
  return {best, at < 0 ? -1 : first + tile_offset(at)};
}

__device__ LogitAnswer tile_best(const DeviceLogits& rows, const LogitTask& task,
                                 const float (&values)[kPerThread], int32_t first) {
  const Candidate best = thread_best(values, first);
  float group = best.logit;
  group = fmaxf(group, __shfl_xor_sync(kAllLanes, group, 1));
  group = fmaxf(group, __shfl_xor_sync(kAllLanes, group, 2));
  if (rows.group_max != nullptr && threadIdx.x % 4 == 0) {
    rows.group_max[int64_t{task.row} * logit_groups(rows.vocab) + blockIdx.x * 64 +
                   threadIdx.x / 4] = group;
  }
  if (best.token < 0) return nothing(LogitTask::kBest);
  return {__double_as_longlong(static_cast<double>(best.logit)), best.logit, best.token};
}

__device__ LogitAnswer tile_mass(const LogitTask& task, const float (&values)[kPerThread]) {
  float best = values[0];
#pragma unroll
  for (int i = 1; i < kPerThread; ++i) best = fmaxf(best, values[i]);
  int64_t sum = 0;
  if (!((best - task.max) * task.inverse_temperature < kNoMass)) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      sum += mass_of(values[i], task.max, task.inverse_temperature);
    }
  }
  return {sum, 0.0f, -1};
}

// A lower bound of the Gumbel noise of these bits: the tail and its logarithms are rounded up.
__device__ float least_gumbel(uint64_t bits) {
  const float tail = static_cast<float>(static_cast<uint32_t>(bits >> 40) + 1) * 0x1p-24f;
  const float hazard = tail < 0.01f ? tail * (1.0f + 0.51f * tail) : -__logf(1.0f - tail) * 1.001f;
  return -__logf(hazard) - 1e-3f;  // tail 1: -inf
}

// A lower bound of the score, whatever its size.
__device__ float least_score(const Draw& draw, const Candidate& one) {
  const double scaled = static_cast<double>(one.logit) * draw.inverse_temperature;
  const float bound = __double2float_rd(scaled) + least_gumbel(token_bits(draw.key, one.token));
  return bound - fabsf(bound) * 0x1p-20f;
}

// An upper limit of the upper half of a token's random bits, without which no token with a logit of
// at most `logit` reaches a score of `bound`: see gumbel(). Where float arithmetic says nothing
// (NaN, overflow), every token may.
__device__ uint32_t bits_limit(float logit, float inverse_temperature, float bound) {
  const float scaled = __fmul_rn(logit, inverse_temperature);
  const float ahead = scaled - bound + (fabsf(scaled) * 0x1p-20f + fabsf(bound) * 0x1p-20f + 1e-3f);
  const float limit = exp2f(ahead * 1.44269504f + 32.0f);
  return limit < 4294967040.0f ? static_cast<uint32_t>(limit) + 1 : 0xffffffffu;
}

// Gumbel-max over the tile. A bound from below of the scores of every thread's best logit rules out
// nearly all tokens by one half of their random bits; the few others are scored all at a time.
__device__ LogitAnswer tile_draw(const DeviceLogits& rows, const LogitTask& task,
                                 const float (&values)[kPerThread], int32_t first) {
  __shared__ uint32_t bound;  // as ordered(); 0: none
  __shared__ int survivors;
  __shared__ uint16_t survivor[kTile];
  if (threadIdx.x == 0) {
    bound = 0;
    survivors = 0;
  }
  __syncthreads();
  const Draw& draw = task.draw;
  const auto inverse = static_cast<float>(draw.inverse_temperature);
  const Candidate start = thread_best(values, first);
  const bool kept = start.token >= 0 && draw.keeps(start);  // if not, none of the thread's is
  uint32_t least = 0;
  if (kept) {
    const float score = least_score(draw, start);
    if (score == score) least = ordered(score);
  }
  least = __reduce_max_sync(kAllLanes, least);
  if (threadIdx.x % 32 == 0) atomicMax(&bound, least);
  __syncthreads();
  const uint32_t known = bound;
  if (kept) {
#pragma unroll
    for (int i = 0; i < kPerThread; i += 4) {
      const float most =
          fmaxf(fmaxf(values[i], values[i + 1]), fmaxf(values[i + 2], values[i + 3]));
      const uint32_t limit =
          known == 0 ? 0xffffffffu : bits_limit(most, inverse, from_ordered(known));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int offset = tile_offset(i + j);
        if (static_cast<uint32_t>(token_bits(draw.key, first + offset) >> 32) > limit) continue;
        if (values[i + j] == kNoLogit) continue;
        survivor[atomicAdd(&survivors, 1)] = static_cast<uint16_t>(offset);
      }
    }
  }
  __syncthreads();
  Scored winner;
  const float* from = rows.logits + task.row * rows.stride + (first - rows.vocab_begin);
  for (int i = threadIdx.x; i < survivors; i += kScanThreads) {
    const int offset = survivor[i];
    const Candidate candidate{legal_logit(__ldg(from + offset)), first + offset};
    if (!draw.keeps(candidate)) continue;
    const Scored scored = draw.score(candidate);
    if (better(scored, winner)) winner = scored;
  }
  if (winner.token < 0) return nothing(LogitTask::kDraw);
  return {__double_as_longlong(winner.score), 0.0f, winner.token};
}

// The answer of the whole block, in its first warp.
__device__ LogitAnswer merge_block(int32_t kind, LogitAnswer mine) {
  __shared__ LogitAnswer warps[kWarps];
  mine = merge_lanes(kind, mine);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x >= 32) return mine;
  return merge_lanes(kind, threadIdx.x < kWarps ? warps[threadIdx.x] : nothing(kind));
}

__device__ LogitAnswer load_partial(const LogitAnswer* from) {
  const int4 bits = __ldcg(reinterpret_cast<const int4*>(from));  // not from this SM's own cache
  LogitAnswer answer;
  answer.value = static_cast<int64_t>(static_cast<uint32_t>(bits.x)) | int64_t{bits.y} << 32;
  answer.logit = __int_as_float(bits.z);
  answer.token = bits.w;
  return answer;
}

// Grid: parts of the row, tasks. The block of a task that finishes last merges what all have left.
// Without draws a kernel of fewer registers and less shared memory does.
template <bool kDraws>
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(const DeviceLogits rows, const LogitTask* tasks, const LogitScanScratch scratch,
                LogitAnswer* answers) {
  const LogitTask& task = tasks[blockIdx.y];
  float values[kPerThread];
  load_tile(rows, task.row, blockIdx.x, values);
  const int32_t kind = task.kind;
  const int32_t first = rows.vocab_begin + static_cast<int32_t>(blockIdx.x) * kTile;
  LogitAnswer mine;
  if (kDraws && kind == LogitTask::kDraw) {
    mine = tile_draw(rows, task, values, first);
  } else if (kind == LogitTask::kMass) {
    mine = tile_mass(task, values);
  } else {
    mine = tile_best(rows, task, values, first);
  }
  mine = merge_block(kind, mine);
  if (threadIdx.x >= 32) return;
  const int parts = gridDim.x;
  if (parts > 1) {
    LogitAnswer* partial = scratch.partial + int64_t{blockIdx.y} * parts;
    uint32_t arrived = 0;
    if (threadIdx.x == 0) {
      partial[blockIdx.x] = mine;
      __threadfence();
      arrived = atomicInc(scratch.arrivals + blockIdx.y, parts - 1);  // the last one clears it
      __threadfence();
    }
    arrived = __shfl_sync(kAllLanes, arrived, 0);
    if (arrived != static_cast<uint32_t>(parts) - 1) return;
    mine = nothing(kind);
    for (int i = threadIdx.x; i < parts; i += 32) {
      mine = merge(kind, mine, load_partial(partial + i));
    }
    mine = merge_lanes(kind, mine);
  }
  if (threadIdx.x == 0) answers[blockIdx.y] = mine;
}

}  // namespace

void load_logit_scan() {
  load_kernel(scan_kernel<false>);
  load_kernel(scan_kernel<true>);
}

void launch_logit_scan(const DeviceLogits& rows, const LogitTask* tasks, int32_t count, bool draws,
                       const LogitScanScratch& scratch, LogitAnswer* answers, cudaStream_t stream) {
  if (count == 0) return;
  if (count > 65535) fail_internal("sampling: more than 65535 questions at a time");
  // A part without logits still has an answer.
  const int parts = rows.vocab > 0 ? logit_parts(rows.vocab) : 1;
  const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(count));
  const auto kernel = draws ? scan_kernel<true> : scan_kernel<false>;
  kernel<<<grid, kScanThreads, 0, stream>>>(rows, tasks, scratch, answers);
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace trireme::cuda
