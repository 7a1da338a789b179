// The best logits of a row, and the buckets of a wide top_p.
#include "kernels/cuda/check.h"
#include "kernels/cuda/sampling_tile.cuh"

namespace trireme::cuda {
namespace {

constexpr int kTopThreads = 1024;
constexpr int kTopRoom = 4096;  // candidates that are sorted in shared memory

// A candidate as one number, larger for better ones; never 0.
__device__ uint64_t key_of(float logit, int32_t token) {
  return uint64_t{ordered(logit)} << 32 | ~static_cast<uint32_t>(token);
}
__device__ Candidate candidate_of(uint64_t key) {
  return {from_ordered(static_cast<uint32_t>(key >> 32)),
          static_cast<int32_t>(~static_cast<uint32_t>(key))};
}

// The count-th largest of `maxima`, as ordered(): at least `count` logits reach it. -inf where
// there are fewer maxima. Bit by bit from the top.
__device__ uint32_t floor_of(const float* maxima, int groups, int count) {
  const uint32_t least = ordered(kNoLogit);
  if (count >= groups) return least;
  uint32_t floor = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t tried = floor | 1u << bit;
    int reached = 0;
    for (int i = 0; i < groups; i += kTopThreads) {
      const int at = i + static_cast<int>(threadIdx.x);
      reached += __syncthreads_count(at < groups && ordered(maxima[at]) >= tried);
    }
    if (reached >= count) floor = tried;
  }
  return floor > least ? floor : least;
}

// Calls visit(logit, token, group in use) with every lane of the warp for the logits of groups
// whose maximum reaches `floor`; returns whether another group has a logit above -inf.
template <typename Visit>
__device__ bool visit_groups(const DeviceLogits& rows, int32_t row, uint32_t floor, Visit visit) {
  const float* logits = rows.logits + row * rows.stride;
  const int groups = logit_groups(rows.vocab);
  const float* maxima = rows.group_max + int64_t{row} * groups;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  bool skipped = false;
  for (int base = warp * 32; base < groups; base += kTopThreads) {  // groups is a multiple of 64
    const float max = maxima[base + lane];
    const bool used = max != kNoLogit && ordered(max) >= floor;
    skipped |= max != kNoLogit && !used;
    for (unsigned left = __ballot_sync(kAllLanes, used); left != 0; left &= left - 1) {
      const int group = base + __ffs(static_cast<int>(left)) - 1;
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // see tile_offset(): 4 runs of 16
        const int at =
            group / 8 * kWarpTile + (half * 2 + lane / 16) * 128 + group % 8 * 16 + lane % 16;
        visit(at < rows.vocab ? legal_logit(logits[at]) : kNoLogit, rows.vocab_begin + at);
      }
    }
  }
  return skipped;
}

// Descending; `count` keys in `keys`, room for the next power of two.
__device__ void sort_keys(uint64_t* keys, int count) {
  int size = 32;
  while (size < count) size *= 2;
  for (int i = count + threadIdx.x; i < size; i += kTopThreads) keys[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kTopThreads) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == ((low & run) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The count-th largest key of the row, which has more than `count`, digit by digit of 8 bits.
__device__ uint64_t select_key(const DeviceLogits& rows, int32_t row, int count) {
  __shared__ int digits[256];
  __shared__ uint64_t chosen;
  __shared__ int wanted, exact;
  if (threadIdx.x == 0) {
    chosen = 0;
    wanted = count;
    exact = 0;
  }
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) digits[threadIdx.x] = 0;
    __syncthreads();
    const uint64_t prefix = chosen;
    visit_groups(rows, row, 0, [&](float logit, int32_t token) {
      const uint64_t key = key_of(logit, token);
      const bool counts = logit != kNoLogit && (shift == 56 || (key ^ prefix) >> (shift + 8) == 0);
      const unsigned lanes = __ballot_sync(kAllLanes, counts);
      if (!counts) return;
      const int digit = static_cast<int>(key >> shift & 255);
      int same = 0;
      __match_all_sync(lanes, digit, &same);
      if (same == 0) {
        atomicAdd(digits + digit, 1);
      } else if (threadIdx.x % 32 == __ffs(static_cast<int>(lanes)) - 1) {
        atomicAdd(digits + digit, __popc(lanes));
      }
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255, left = wanted;
      while (digits[digit] < left) left -= digits[digit--];
      wanted = left;
      chosen = prefix | static_cast<uint64_t>(digit) << shift;
      exact = digits[digit] == left;
    }
    __syncthreads();
    if (exact != 0) break;  // all with this prefix are wanted
  }
  return chosen;
}

// One block a task.
__global__ void __launch_bounds__(kTopThreads)
    top_kernel(const DeviceLogits rows, const LogitTask* tasks, Candidate* lists,
               LogitAnswer* answers) {
  __shared__ uint64_t keys[kTopRoom];
  __shared__ int found, total;
  const LogitTask task = tasks[blockIdx.x];
  const int groups = logit_groups(rows.vocab);
  const uint32_t floor = floor_of(rows.group_max + int64_t{task.row} * groups, groups, task.count);
  if (threadIdx.x == 0) found = total = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  bool worse = false;
  const bool skipped = visit_groups(rows, task.row, floor, [&](float logit, int32_t token) {
    const bool reaches = logit != kNoLogit && ordered(logit) >= floor;
    worse |= logit != kNoLogit && !reaches;
    const unsigned lanes = __ballot_sync(kAllLanes, reaches);
    if (lanes == 0) return;
    int place = 0;
    if (lane == 0) place = atomicAdd(&total, __popc(lanes));
    place = __shfl_sync(kAllLanes, place, 0) + __popc(lanes & ((1u << lane) - 1));
    if (reaches && place < kTopRoom) keys[place] = key_of(logit, token);
  });
  const bool more = __syncthreads_or(worse || skipped) != 0;
  const int count = min(total, task.count);
  int64_t flags = more || total > task.count ? kTopLeftOut : 0;
  Candidate* list = lists + task.list;
  if (total <= kTopRoom) {
    sort_keys(keys, total);
    for (int i = threadIdx.x; i < count; i += kTopThreads) list[i] = candidate_of(keys[i]);
  } else {
    flags |= kTopUnsorted;
    const uint64_t least = total > task.count ? select_key(rows, task.row, task.count) : 0;
    visit_groups(rows, task.row, floor, [&](float logit, int32_t token) {
      const uint64_t key = key_of(logit, token);
      if (logit != kNoLogit && key >= least) list[atomicAdd(&found, 1)] = candidate_of(key);
    });
  }
  if (threadIdx.x == 0) answers[blockIdx.x] = {flags, 0.0f, count};
}

// The bucket that the task means; -1: none of them.
__device__ int task_bucket(const LogitTask& task, float logit) {
  const int bucket = bucket_of(logit, task.max, task.inverse_temperature);
  if (task.within < 0) return bucket;
  return bucket == task.within ? sub_bucket_of(logit, task.max, task.inverse_temperature) : -1;
}

__global__ void __launch_bounds__(kScanThreads)
    bucket_masses_kernel(const DeviceLogits rows, const LogitTask* tasks, int64_t* masses,
                         int32_t* counts) {
  __shared__ TileBins sums;
  const LogitTask& task = tasks[blockIdx.y];
  sums.clear();
  float values[kPerThread];
  load_tile(rows, task.row, blockIdx.x, values);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (values[i] == kNoLogit) continue;
    const int bucket = task_bucket(task, values[i]);
    if (bucket < 0) continue;
    sums.add(bucket, mass_of(values[i], task.max, task.inverse_temperature));
  }
  __syncthreads();
  const uint32_t count = sums.counts[threadIdx.x];
  if (count == 0) return;
  const int64_t to = int64_t{task.place} * kMassBuckets + threadIdx.x;
  atomicAdd(counts + to, static_cast<int32_t>(count));
  const uint64_t mass = sums.mass(threadIdx.x);
  if (mass != 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(masses + to),
              static_cast<unsigned long long>(mass));
  }
}

__global__ void __launch_bounds__(kScanThreads)
    bucket_kernel(const DeviceLogits rows, const LogitTask* tasks, Candidate* lists,
                  LogitAnswer* answers) {
  const LogitTask& task = tasks[blockIdx.y];
  float values[kPerThread];
  load_tile(rows, task.row, blockIdx.x, values);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const bool here = values[i] != kNoLogit && task_bucket(task, values[i]) == task.which;
    if (!here) continue;
    const int place = atomicAdd(&answers[blockIdx.y].token, 1);
    const int32_t token =
        rows.vocab_begin + static_cast<int32_t>(blockIdx.x) * kTile + tile_offset(i);
    if (place < task.count) lists[task.list + place] = {values[i], token};
  }
}

dim3 tiles(const DeviceLogits& rows, int32_t count) {
  return {static_cast<unsigned>(logit_parts(rows.vocab)), static_cast<unsigned>(count)};
}

}  // namespace

void launch_bucket_masses(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                          int64_t* masses, int32_t* counts, cudaStream_t stream) {
  if (count == 0 || rows.vocab == 0) return;
  bucket_masses_kernel<<<tiles(rows, count), kScanThreads, 0, stream>>>(rows, tasks, masses,
                                                                        counts);
  TRIREME_CUDA(cudaGetLastError());
}

void launch_bucket(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                   Candidate* lists, LogitAnswer* answers, cudaStream_t stream) {
  if (count == 0 || rows.vocab == 0) return;
  bucket_kernel<<<tiles(rows, count), kScanThreads, 0, stream>>>(rows, tasks, lists, answers);
  TRIREME_CUDA(cudaGetLastError());
}

void launch_logit_top(const DeviceLogits& rows, const LogitTask* tasks, int32_t count,
                      Candidate* lists, LogitAnswer* answers, cudaStream_t stream) {
  if (count == 0) return;
  top_kernel<<<static_cast<unsigned>(count), kTopThreads, 0, stream>>>(rows, tasks, lists, answers);
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace trireme::cuda
