// How blocks look at a row of logits: 256 threads take 4096 of them, 16 a thread.
#pragma once

#include "kernels/cuda/sampling.h"

namespace trireme::cuda {

constexpr int kScanThreads = 256;
constexpr int kPerThread = 16;
constexpr int kTile = kScanThreads * kPerThread;
constexpr int kWarpTile = kTile / 8;  // contiguous, of one warp
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kTile == 4096 && kMassBuckets == kScanThreads);

// Of the thread's i-th logit, from the tile's first. A group of 64 is 4 lanes' logits.
__device__ inline int tile_offset(int i) {
  return threadIdx.x / 32 * kWarpTile + i / 4 * 128 + threadIdx.x % 32 * 4 + i % 4;
}

// Legal logits; -inf beyond the vocabulary.
__device__ inline void load_tile(const DeviceLogits& rows, int32_t row, int32_t part,
                                 float (&values)[kPerThread]) {
  const float* from = rows.logits + row * rows.stride + part * kTile;
  const int left = rows.vocab - part * kTile;
  const bool vectors = left >= kTile && reinterpret_cast<uintptr_t>(from) % 16 == 0;
#pragma unroll
  for (int i = 0; i < kPerThread; i += 4) {
    const int at = tile_offset(i);
    if (vectors) {
      *reinterpret_cast<float4*>(values + i) = __ldg(reinterpret_cast<const float4*>(from + at));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) values[i + j] = at + j < left ? __ldg(from + at + j) : kNoLogit;
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) values[i] = legal_logit(values[i]);
}

// How many of a tile's logits are in each bin, and their mass, in shared memory. Sums of up to 2^40
// a logit are three counters of 14 bits: shared memory adds 32 bits at a time.
struct TileBins {
  uint32_t counts[kMassBuckets];
  uint32_t parts[3][kMassBuckets];

  // By every thread, of its own bin; barriers before and after are the caller's.
  __device__ void clear() {
    counts[threadIdx.x] = parts[0][threadIdx.x] = parts[1][threadIdx.x] = parts[2][threadIdx.x] = 0;
  }
  __device__ void add(int bin, int64_t mass) {
    atomicAdd(counts + bin, 1u);
    if (mass == 0) return;
    atomicAdd(parts[0] + bin, static_cast<uint32_t>(mass & 0x3fff));
    atomicAdd(parts[1] + bin, static_cast<uint32_t>(mass >> 14 & 0x3fff));
    atomicAdd(parts[2] + bin, static_cast<uint32_t>(mass >> 28));
  }
  __device__ uint64_t mass(unsigned bin) const {
    return uint64_t{parts[0][bin]} + (uint64_t{parts[1][bin]} << 14) +
           (uint64_t{parts[2][bin]} << 28);
  }
};

// Monotone in the float; all differ from 0. -0 and +0 differ, as they do not as floats: add 0.0f.
__device__ inline uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered(uint32_t value) {
  return __uint_as_float(value & 0x80000000u ? value & 0x7fffffffu : ~value);
}

}  // namespace trireme::cuda
