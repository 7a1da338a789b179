// Attention of a group's queries to one tile, on tensor cores, and the running result.
#pragma once

#include "kernels/cuda/decode_attention_tiles.cuh"

namespace trireme::cuda::decode {

// What a warp, or several, know of an item: unnormalised sums and the running softmax. A lane holds
// rows lane / 4 (h = 0) and lane / 4 + 8 (h = 1), columns n * 8 + lane % 4 * 2 + {0, 1}, as the
// products' fragments do.
template <int kDim>
struct Result {
  float out[kDim / 8][4];
  float max[2];
  float sum[2];

  __device__ void clear() {
#pragma unroll
    for (auto& o : out) o[0] = o[1] = o[2] = o[3] = 0.0f;
    max[0] = max[1] = kLowest;
    sum[0] = sum[1] = 0.0f;
  }

  __device__ void scale(float low, float high) {
#pragma unroll
    for (auto& o : out) {
      o[0] *= low;
      o[1] *= low;
      o[2] *= high;
      o[3] *= high;
    }
    sum[0] *= low;
    sum[1] *= high;
  }

  // To and from shared memory, a float4 a lane at a time.
  __device__ void store(float4* to, bool wide) const {
    *to = make_float4(max[0], max[1], sum[0], sum[1]);
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      to += 32;
      *to = make_float4(out[n][0], out[n][1], out[n + 1][0], out[n + 1][1]);
      if (!wide) continue;
      to += 32;
      *to = make_float4(out[n][2], out[n][3], out[n + 1][2], out[n + 1][3]);
    }
  }

  __device__ void merge(const float4* from, bool wide) {
    const float4 s = *from;
    const float top[2] = {fmaxf(max[0], s.x), fmaxf(max[1], s.y)};
    const float theirs[2] = {exp2_fast(s.x - top[0]), exp2_fast(s.y - top[1])};
    scale(exp2_fast(max[0] - top[0]), exp2_fast(max[1] - top[1]));
    max[0] = top[0];
    max[1] = top[1];
    sum[0] += s.z * theirs[0];
    sum[1] += s.w * theirs[1];
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      from += 32;
      add(n, 0, *from, theirs[0]);
      if (!wide) continue;
      from += 32;
      add(n, 2, *from, theirs[1]);
    }
  }

 private:
  __device__ void add(int n, int c, float4 x, float factor) {
    out[n][c] += x.x * factor;
    out[n][c + 1] += x.y * factor;
    out[n + 1][c] += x.z * factor;
    out[n + 1][c + 1] += x.w * factor;
  }
};

// Exact to float32 at 1: scores are sums, so that an absolute error is what counts.
__device__ inline float tanh(float x) {
  return 1.0f - __fdividef(2.0f, exp2_fast(2.88539008f * x) + 1.0f);
}

// Two weights as the pair that the product takes; the sum is of what was rounded.
__device__ inline uint32_t weigh(float& s0, float& s1, float max, float& sum) {
  const uint32_t pair = pack(exp2_fast(s0 - max), exp2_fast(s1 - max));
  const float2 rounded = unpack(pair);
  sum += rounded.x + rounded.y;
  return pair;
}

// One tile: scores of 16 positions from `begin` on, softmax, weighted sum of V. `queries`: their
// tile in shared memory, or the fragments where they fit the registers.
template <int kDim, typename Queries>
__device__ inline void attend_tile(const Params& p, uint32_t k_tile, const Queries& queries,
                                   int lane, int position, int begin, int end, Result<kDim>& r) {
  const int part = lane / 8, line = lane & 7;
  float score[2][4] = {}, odd[2][4] = {};  // even and odd steps: shorter chains
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[4], b[4];
    queries(step, a);
    load_matrices(b, k_tile + unit_offset<kDim>(line + part / 2 * 8, step * 2 + (part & 1)));
    multiply_add(step % 2 == 0 ? score[0] : odd[0], a, b[0], b[1]);
    multiply_add(step % 2 == 0 ? score[1] : odd[1], a, b[2], b[3]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    score[i / 4][i & 3] = (score[i / 4][i & 3] + odd[i / 4][i & 3]) * p.score_scale;
  }
  if (p.softcap_log2 != 0.0f) {
#pragma unroll
    for (int i = 0; i < 8; ++i) score[i / 4][i & 3] = p.softcap_log2 * tanh(score[i / 4][i & 3]);
  }
  if (position < begin || position + kTile > end) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int at = position + i / 4 * 8 + (lane & 3) * 2 + (i & 1);
      if (at < begin || at >= end) score[i / 4][i & 3] = -INFINITY;
    }
  }
  float top[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    top[h] = fmaxf(fmaxf(score[0][2 * h], score[0][2 * h + 1]),
                   fmaxf(score[1][2 * h], score[1][2 * h + 1]));
    top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
    top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
    top[h] = fmaxf(top[h], r.max[h]);
  }
  if (__any_sync(0xffffffffu, top[0] > r.max[0] || top[1] > r.max[1])) {
    r.scale(exp2_fast(r.max[0] - top[0]), exp2_fast(r.max[1] - top[1]));
    r.max[0] = top[0];
    r.max[1] = top[1];
  }
  const uint32_t weights[4] = {weigh(score[0][0], score[0][1], top[0], r.sum[0]),
                               weigh(score[0][2], score[0][3], top[1], r.sum[1]),
                               weigh(score[1][0], score[1][1], top[0], r.sum[0]),
                               weigh(score[1][2], score[1][3], top[1], r.sum[1])};
  const uint32_t v_tile = k_tile + Layout<kDim>::kTileBytes;
#pragma unroll
  for (int n = 0; n < kDim / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, v_tile + unit_offset<kDim>(line + (part & 1) * 8, n + part / 2));
    multiply_add(r.out[n], weights, b[0], b[1]);
    multiply_add(r.out[n + 1], weights, b[2], b[3]);
  }
}

}  // namespace trireme::cuda::decode
