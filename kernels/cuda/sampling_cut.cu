// Where top_k and top_p cut a row, found without the host: the bucket of logits in which what they
// want is reached, the part of that bucket, and in it the last token that is kept. All sums are in
// fixed point and all ranks add the same, so every rank finds the same token, and the host, asked
// the same, finds it too (runtime/sampler_threshold.cc).
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/load_kernel.h"
#include "kernels/cuda/peer_lanes.cuh"
#include "kernels/cuda/sampling_tile.cuh"

namespace trireme::cuda {
namespace {

constexpr int kCutThreads = kMassBuckets;
constexpr int kCutWarps = kCutThreads / 32;

struct Sum {
  int64_t mass = 0;
  int64_t count = 0;
};
__device__ Sum operator+(const Sum& a, const Sum& b) {
  return {a.mass + b.mass, a.count + b.count};
}

__device__ bool is_whole(const Cut& cut) { return cut.top_k <= 0 && cut.top_p >= 1.0f; }
__device__ float max_of(const Cut& cut) { return cut.max == 0 ? kNoLogit : from_ordered(cut.max); }
__device__ int64_t mass_in(const Cut& cut, float logit) {
  return mass_of(logit, max_of(cut), cut.inverse_temperature);
}
// The bin of a logit: its bucket or, of `bucket` >= 0, its part there; -1 outside of that.
__device__ int bin_of(const Cut& cut, int bucket, float logit) {
  const float max = max_of(cut);
  const int whole = bucket_of(logit, max, cut.inverse_temperature);
  if (bucket < 0) return whole;
  return whole == bucket ? sub_bucket_of(logit, max, cut.inverse_temperature) : -1;
}

// What one exchange brings: every thread's own vector to all ranks; vectors[rank] of each. A block
// works on the lane of its number.
template <int kRanks>
__device__ void exchange(const PeerLanes& lanes, uint4 own, uint4 (&vectors)[kRanks]) {
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) vectors[rank] = own;
  if constexpr (kRanks > 1) {
    const Lane lane(lanes, static_cast<int>(blockIdx.x));
    lane.push(static_cast<int>(threadIdx.x), own);
    lane.receive(static_cast<int>(threadIdx.x), vectors);
    lane.finish();
    __syncthreads();
  }
}

template <int kRanks>
__device__ Sum over_ranks(const PeerLanes& lanes, const Sum& mine) {
  uint4 vectors[kRanks];
  exchange(lanes,
           make_uint4(static_cast<uint32_t>(mine.mass), static_cast<uint32_t>(mine.mass >> 32),
                      static_cast<uint32_t>(mine.count), 0),
           vectors);
  Sum sum;
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    if (rank >= lanes.size) continue;
    const auto mass = static_cast<int64_t>(vectors[rank].x | uint64_t{vectors[rank].y} << 32);
    sum = sum + Sum{mass, vectors[rank].z};
  }
  return sum;
}

// Of the threads up to this one, inclusive; total of all.
__device__ Sum scan_block(Sum mine, Sum& total) {
  __shared__ Sum warps[kCutWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Sum other{__shfl_up_sync(kAllLanes, mine.mass, offset),
                    __shfl_up_sync(kAllLanes, mine.count, offset)};
    if (lane >= offset) mine = mine + other;
  }
  if (lane == 31) warps[warp] = mine;
  __syncthreads();
  total = {};
  Sum before;
  for (int i = 0; i < kCutWarps; ++i) {
    if (i == warp) before = total;
    total = total + warps[i];
  }
  __syncthreads();
  return before + mine;
}

// Whether what the cut wants is reached by the tokens that `sum` is of. The best one is always
// kept.
__device__ bool reaches(const Cut& cut, const Sum& sum) {
  if (cut.by_count != 0) return sum.count >= cut.wanted_count;
  return sum.count > 0 && static_cast<double>(sum.mass) >= cut.wanted_mass;
}

// The first bin at which the cut is reached, bins in the order of the threads, best first;
// cut.before then counts what is in better ones. Returns its own sum in `within`.
__device__ int narrow(Cut& cut, const Sum& bin, const Sum& inclusive, Sum& within) {
  __shared__ Sum sums[2];
  const Sum here = Sum{cut.before_mass, cut.before_count} + inclusive;
  const int first = min(__syncthreads_count(!reaches(cut, here)), kCutThreads - 1);
  if (static_cast<int>(threadIdx.x) == first) {
    sums[0] = {here.mass - bin.mass, here.count - bin.count};
    sums[1] = bin;
  }
  __syncthreads();
  cut.before_mass = sums[0].mass;
  cut.before_count = static_cast<int32_t>(sums[0].count);
  within = sums[1];
  __syncthreads();
  return first;
}

// What is wanted of the buckets, and the one it is reached in.
__device__ void find_bucket(Cut& cut, const Sum& bin, const Sum& inclusive) {
  cut.before_mass = 0;
  cut.before_count = 0;
  Sum within;
  cut.bucket = narrow(cut, bin, inclusive, within);
}

// The largest logit of every cut's row.
__global__ void __launch_bounds__(kScanThreads) cut_max_kernel(const DeviceLogits rows, Cut* cuts) {
  Cut& cut = cuts[blockIdx.y];
  float values[kPerThread];
  load_tile(rows, cut.row, blockIdx.x, values);
  float best = values[0];
#pragma unroll
  for (int i = 1; i < kPerThread; ++i) best = fmaxf(best, values[i]);
  const uint32_t max = __reduce_max_sync(kAllLanes, ordered(best));
  if (threadIdx.x % 32 == 0 && max != ordered(kNoLogit)) atomicMax(&cut.max, max);
}

template <int kRanks>
__global__ void __launch_bounds__(kCutThreads)
    exchange_max_kernel(const __grid_constant__ PeerLanes lanes, Cut* cuts, int32_t count) {
  const int i = static_cast<int>(threadIdx.x);
  uint32_t max = i < count ? cuts[i].max : 0;
  uint4 vectors[kRanks];
  exchange(lanes, make_uint4(max, 0, 0, 0), vectors);
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    if (rank < lanes.size && vectors[rank].x > max) max = vectors[rank].x;
  }
  if (i < count) cuts[i].max = max;
}

// Masses and counts of every bucket (round < 0) or of the parts of the cut's bucket.
__global__ void __launch_bounds__(kScanThreads)
    cut_bins_kernel(const DeviceLogits rows, const Cut* cuts, CutBin* bins, int round) {
  const Cut& cut = cuts[blockIdx.y];
  if (is_whole(cut) || cut.max == 0 || (round >= 0 && cut.round != round)) return;
  const int bucket = round < 0 ? -1 : cut.bucket;
  __shared__ TileBins sums;
  sums.clear();
  float values[kPerThread];
  load_tile(rows, cut.row, blockIdx.x, values);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (values[i] == kNoLogit) continue;
    const int bin = bin_of(cut, bucket, values[i]);
    if (bin >= 0) sums.add(bin, mass_in(cut, values[i]));
  }
  __syncthreads();
  const uint32_t count = sums.counts[threadIdx.x];
  if (count == 0) return;
  CutBin& to = bins[(int64_t{blockIdx.y} * kCutLevels + 1 + round) * kMassBuckets + threadIdx.x];
  atomicAdd(&to.count, count);
  const uint64_t mass = sums.mass(threadIdx.x);
  if (mass != 0) atomicAdd(&to.mass, static_cast<unsigned long long>(mass));
}

// From the sums of the buckets: what the cut wants, and the bucket it lies in.
template <int kRanks>
__global__ void __launch_bounds__(kCutThreads)
    cut_bucket_kernel(const __grid_constant__ PeerLanes lanes, Cut* cuts, int32_t count,
                      CutBin* bins, LogitTask* tasks) {
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    Cut cut = cuts[i];
    __syncthreads();
    if (threadIdx.x == 0) tasks[cut.choice].draw.max = static_cast<double>(max_of(cut));
    cut.round = kCutDone;
    if (!is_whole(cut) && cut.max != 0) {
      CutBin& bin = bins[int64_t{i} * kCutLevels * kMassBuckets + threadIdx.x];
      const Sum sum = over_ranks<kRanks>(
          lanes, {static_cast<int64_t>(bin.mass), static_cast<int64_t>(bin.count)});
      if (kRanks > 1)
        bin = {static_cast<unsigned long long>(sum.mass), static_cast<uint32_t>(sum.count)};
      Sum total;
      const Sum inclusive = scan_block(sum, total);
      cut.by_count = cut.top_k > 0 && total.count > cut.top_k ? 1 : 0;
      cut.wanted_count = cut.top_k;
      cut.wanted_mass = static_cast<double>(cut.top_p) * static_cast<double>(total.mass);
      if (cut.by_count != 0 || cut.top_p < 1.0f) {
        cut.round = 0;
        find_bucket(cut, sum, inclusive);
      }
    }
    if (threadIdx.x == 0) cuts[i] = cut;
  }
}

// From the sums of a bucket's parts: the one in which the cut lies.
template <int kRanks>
__global__ void __launch_bounds__(kCutThreads)
    cut_part_kernel(const __grid_constant__ PeerLanes lanes, Cut* cuts, int32_t count,
                    const CutBin* bins, int round) {
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    Cut cut = cuts[i];
    __syncthreads();
    if (cut.round != round) continue;
    const CutBin& bin = bins[(int64_t{i} * kCutLevels + 1 + round) * kMassBuckets + threadIdx.x];
    const Sum sum = over_ranks<kRanks>(
        lanes, {static_cast<int64_t>(bin.mass), static_cast<int64_t>(bin.count)});
    Sum total, within;
    const Sum inclusive = scan_block(sum, total);
    cut.part = narrow(cut, sum, inclusive, within);
    cut.part_count = static_cast<int32_t>(within.count);
    if (threadIdx.x == 0) cuts[i] = cut;
  }
}

// The tokens of the cut's part, where they are few.
__global__ void __launch_bounds__(kScanThreads)
    cut_list_kernel(const DeviceLogits rows, Cut* cuts, Candidate* lists, int round) {
  Cut& cut = cuts[blockIdx.y];
  if (cut.round != round || cut.part_count > kCutRoom) return;
  float values[kPerThread];
  load_tile(rows, cut.row, blockIdx.x, values);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (values[i] == kNoLogit || bin_of(cut, cut.bucket, values[i]) != cut.part) continue;
    const int place = atomicAdd(&cut.listed, 1);
    const int32_t token =
        rows.vocab_begin + static_cast<int32_t>(blockIdx.x) * kTile + tile_offset(i);
    // More only after a peer that was not waited for.
    if (place < kCutRoom) lists[int64_t{blockIdx.y} * kCutRoom + place] = {values[i], token};
  }
}

struct LastKept {
  Candidate token;
  Sum through;  // of all tokens up to it
};

// Among at most kCutRoom tokens, a thread each: what is better is counted token by token.
template <int kRanks>
__device__ LastKept last_of_few(const PeerLanes& lanes, const Cut& cut, const Candidate* list) {
  __shared__ Candidate candidates[kCutRoom];
  __shared__ int64_t masses[kCutRoom];
  __shared__ int found;
  __shared__ LastKept last;
  const int i = static_cast<int>(threadIdx.x);
  if (i == 0) found = 0;
  __syncthreads();
  const Candidate own = i < min(cut.listed, kCutRoom) ? list[i] : Candidate{};
  uint4 vectors[kRanks];
  exchange(lanes, make_uint4(__float_as_uint(own.logit), static_cast<uint32_t>(own.token), 0, 0),
           vectors);
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    const Candidate one{__uint_as_float(vectors[rank].x), static_cast<int32_t>(vectors[rank].y)};
    if (rank >= lanes.size || one.token < 0) continue;
    const int place = atomicAdd(&found, 1);
    if (place >= kCutRoom) continue;  // only after a peer that was not waited for
    candidates[place] = one;
    masses[place] = mass_in(cut, one.logit);
  }
  __syncthreads();
  if (i < min(found, kCutRoom)) {
    const Candidate mine = candidates[i];
    Sum before{cut.before_mass, cut.before_count};
    for (int j = 0; j < min(found, kCutRoom); ++j) {
      if (better(candidates[j], mine)) before = before + Sum{masses[j], 1};
    }
    const Sum through = before + Sum{masses[i], 1};
    if (reaches(cut, through) && !reaches(cut, before)) last = {mine, through};
  }
  __syncthreads();
  return last;
}

// Among any number, of equal logits perhaps: digit by digit of 8 bits of what orders them, one look
// at the row each.
template <int kRanks>
__device__ LastKept last_of_many(const PeerLanes& lanes, const DeviceLogits& rows, Cut cut) {
  __shared__ unsigned long long masses[256];
  __shared__ uint32_t counts[256];
  const float* logits = rows.logits + cut.row * rows.stride;
  uint64_t prefix = 0;
  Sum within;
  for (int shift = 56; shift >= 0; shift -= 8) {
    masses[threadIdx.x] = 0;
    counts[threadIdx.x] = 0;
    __syncthreads();
    for (int base = 0; base < rows.vocab; base += kCutThreads) {
      const int at = base + static_cast<int>(threadIdx.x);
      const float logit = at < rows.vocab ? legal_logit(logits[at]) : kNoLogit;
      const uint64_t key =
          uint64_t{ordered(logit)} << 32 | ~static_cast<uint32_t>(rows.vocab_begin + at);
      const bool counted = logit != kNoLogit && bin_of(cut, cut.bucket, logit) == cut.part &&
                           (shift == 56 || (key ^ prefix) >> (shift + 8) == 0);
      const unsigned lanes_counted = __ballot_sync(kAllLanes, counted);
      if (!counted) continue;
      const int digit = static_cast<int>(key >> shift & 255);
      const auto mass = static_cast<unsigned long long>(mass_in(cut, logit));
      int same_logit = 0, same_digit = 0;  // as where many are equal: one addition for all lanes
      __match_all_sync(lanes_counted, key >> 32, &same_logit);
      __match_all_sync(lanes_counted, digit, &same_digit);
      if (same_logit == 0 || same_digit == 0) {
        atomicAdd(counts + digit, 1u);
        atomicAdd(masses + digit, mass);
      } else if (threadIdx.x % 32 == __ffs(static_cast<int>(lanes_counted)) - 1) {
        const auto equal = static_cast<unsigned>(__popc(lanes_counted));
        atomicAdd(counts + digit, equal);
        atomicAdd(masses + digit, mass * equal);
      }
    }
    __syncthreads();
    const int digit = 255 - static_cast<int>(threadIdx.x);  // the best first
    const Sum sum = over_ranks<kRanks>(lanes, {static_cast<int64_t>(masses[digit]), counts[digit]});
    Sum total;
    const Sum inclusive = scan_block(sum, total);
    prefix |= uint64_t(255 - narrow(cut, sum, inclusive, within)) << shift;
  }
  return {{from_ordered(static_cast<uint32_t>(prefix >> 32)),
           static_cast<int32_t>(~static_cast<uint32_t>(prefix))},
          Sum{cut.before_mass, cut.before_count} + within};
}

// The last token that is kept; where that was top_k's, top_p goes on with what it kept.
template <int kRanks>
__global__ void __launch_bounds__(kCutThreads)
    cut_last_kernel(const __grid_constant__ PeerLanes lanes, const DeviceLogits rows, Cut* cuts,
                    int32_t count, const CutBin* bins, const Candidate* lists, LogitTask* tasks,
                    int round) {
  for (int i = static_cast<int>(blockIdx.x); i < count; i += static_cast<int>(gridDim.x)) {
    Cut cut = cuts[i];
    __syncthreads();
    if (cut.round != round) continue;
    const LastKept last = cut.part_count <= kCutRoom
                              ? last_of_few<kRanks>(lanes, cut, lists + int64_t{i} * kCutRoom)
                              : last_of_many<kRanks>(lanes, rows, cut);
    cut.listed = 0;
    cut.round = kCutDone;
    if (cut.by_count != 0 && cut.top_p < 1.0f) {
      cut.round = 1;
      cut.by_count = 0;
      cut.wanted_mass = static_cast<double>(cut.top_p) * static_cast<double>(last.through.mass);
      const CutBin& bin = bins[int64_t{i} * kCutLevels * kMassBuckets + threadIdx.x];
      const Sum sum{static_cast<int64_t>(bin.mass), static_cast<int64_t>(bin.count)};
      Sum total;
      find_bucket(cut, sum, scan_block(sum, total));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      tasks[cut.choice].draw.worst = last.token;
      cuts[i] = cut;
    }
  }
}

template <int kRanks>
void load_kernels() {
  load_kernel(cut_max_kernel);
  load_kernel(exchange_max_kernel<kRanks>);
  load_kernel(cut_bins_kernel);
  load_kernel(cut_bucket_kernel<kRanks>);
  load_kernel(cut_part_kernel<kRanks>);
  load_kernel(cut_list_kernel);
  load_kernel(cut_last_kernel<kRanks>);
}

template <int kRanks>
void launch(const LaunchCuts& args, cudaStream_t stream) {
  const DeviceLogits& rows = args.rows;
  const auto count = static_cast<unsigned>(args.count);
  const dim3 tiles(static_cast<unsigned>(logit_parts(rows.vocab)), count);
  const unsigned blocks =
      kRanks == 1 ? count : std::min(count, static_cast<unsigned>(args.lanes.lanes));
  const bool any = rows.vocab > 0;
  if (any) cut_max_kernel<<<tiles, kScanThreads, 0, stream>>>(rows, args.cuts);
  if (kRanks > 1) {
    exchange_max_kernel<kRanks><<<1, kCutThreads, 0, stream>>>(args.lanes, args.cuts, args.count);
  }
  if (any && args.rounds > 0) {
    cut_bins_kernel<<<tiles, kScanThreads, 0, stream>>>(rows, args.cuts, args.bins, -1);
  }
  cut_bucket_kernel<kRanks><<<blocks, kCutThreads, 0, stream>>>(args.lanes, args.cuts, args.count,
                                                                args.bins, args.tasks);
  for (int round = 0; round < args.rounds; ++round) {
    if (any) cut_bins_kernel<<<tiles, kScanThreads, 0, stream>>>(rows, args.cuts, args.bins, round);
    cut_part_kernel<kRanks>
        <<<blocks, kCutThreads, 0, stream>>>(args.lanes, args.cuts, args.count, args.bins, round);
    if (any) {
      cut_list_kernel<<<tiles, kScanThreads, 0, stream>>>(rows, args.cuts, args.lists, round);
    }
    cut_last_kernel<kRanks><<<blocks, kCutThreads, 0, stream>>>(
        args.lanes, rows, args.cuts, args.count, args.bins, args.lists, args.tasks, round);
  }
}

}  // namespace

void launch_cuts(const LaunchCuts& args, cudaStream_t stream) {
  if (args.count == 0) return;
  if (args.count > ChosenTokens::kMost) fail_internal("sampling: at most 256 cuts at a time");
  const int ranks = args.lanes.size;
  if (ranks > 1 && args.lanes.packets < 2 * kCutThreads) {
    fail_internal("sampling: lanes are too short for cuts");
  }
  TRIREME_CUDA(cudaMemsetAsync(args.bins, 0, cut_bins_bytes(args.count), stream));
  const auto launch_them = ranks == 1   ? launch<1>
                           : ranks <= 2 ? launch<2>
                           : ranks <= 4 ? launch<4>
                                        : launch<8>;
  launch_them(args, stream);
  TRIREME_CUDA(cudaGetLastError());
}

void load_cuts(int ranks) {
  const auto load_them = ranks == 1   ? load_kernels<1>
                         : ranks <= 2 ? load_kernels<2>
                         : ranks <= 4 ? load_kernels<4>
                                      : load_kernels<8>;
  load_them();
}

}  // namespace trireme::cuda
