// How the results of warps, and of the parts of a row, become one.
#pragma once

#include "kernels/cuda/decode_attention_items.cuh"
#include "kernels/cuda/decode_attention_result.cuh"

namespace trireme::cuda::decode {

template <int kDim, bool kExact>
__device__ inline void store_out(const Params& p, int token, int q_head, int d, float x, float y) {
  const int dim = head_dim_of<kDim, kExact>(p);
  if (d >= dim) return;
  auto* out = static_cast<Element*>(p.a.out) + (int64_t{token} * p.a.q_heads + q_head) * dim + d;
  *reinterpret_cast<Element2*>(out) = narrow(x, y);
}

// The whole block merges `count` results that lie in the workspace, `stride` slots apart from
// `first` on: into the first of them, or if `last` to `out`.
template <int kDim, bool kExact>
__device__ inline void merge_parts(const Params& p, int token, int head, int first, int count,
                                   int stride, bool last) {
  constexpr int kVectors = kDim / 4, kHeads = kThreads / kVectors;
  for (int g = threadIdx.x / kVectors; g - static_cast<int>(threadIdx.x) / kVectors < p.group;
       g += kHeads) {
    const bool active = threadIdx.x < kHeads * kVectors && g < p.group;
    const int q_head = head * p.group + min(g, p.group - 1);
    const int d = static_cast<int>(threadIdx.x) % kVectors * 4;
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float max = kLowest, sum = 0.0f;
    constexpr int kBatch = 8;
    for (int part = 0; part < count; part += kBatch) {
      float4 x[kBatch];
      float2 s[kBatch];
      float top = max;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int slot = first + min(part + j, count - 1) * stride;
        const int64_t at = int64_t{slot} * p.a.q_heads + q_head;
        x[j] = __ldcg(reinterpret_cast<const float4*>(p.partial + at * kDim + d));
        s[j] = __ldcg(p.partial_max_sum + at);
        if (part + j >= count) s[j] = make_float2(kLowest, 0.0f);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) top = fmaxf(top, s[j].x);
      const float mine = exp2_fast(max - top);
      out = make_float4(out.x * mine, out.y * mine, out.z * mine, out.w * mine);
      sum *= mine;
      max = top;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const float theirs = part + j < count ? exp2_fast(s[j].x - top) : 0.0f;
        sum += s[j].y * theirs;
        out.x += x[j].x * theirs;
        out.y += x[j].y * theirs;
        out.z += x[j].z * theirs;
        out.w += x[j].w * theirs;
      }
    }
    if (last) {
      const float inverse = 1.0f / sum;
      if (active) {
        store_out<kDim, kExact>(p, token, q_head, d, out.x * inverse, out.y * inverse);
        store_out<kDim, kExact>(p, token, q_head, d + 2, out.z * inverse, out.w * inverse);
      }
    } else {
      __syncthreads();  // all have read what is replaced now
      const int64_t at = int64_t{first} * p.a.q_heads + q_head;
      if (active) *reinterpret_cast<float4*>(p.partial + at * kDim + d) = out;
      if (active && d == 0) p.partial_max_sum[at] = make_float2(max, sum);
    }
  }
}

// The whole block: whether it is the last of `count` to come to this counter, which is zero again
// after the last, as the next launch wants it. What was written before is then visible to the last.
__device__ inline bool arrive(unsigned* counter, int count, uint8_t* shared_flag) {
  auto* last = reinterpret_cast<int*>(shared_flag);
  __syncthreads();
  if (threadIdx.x == 0) {
    const auto others = static_cast<unsigned>(count - 1);
    *last = increment_wrapping(counter, others) == others;
  }
  __syncthreads();
  return *last != 0;
}

// Warps' results of one item to `out`, or to the workspace if the row has other parts.
template <int kDim, bool kExact>
__device__ inline void finish_item(const Params& p, const Work& work, uint8_t* shared, int warp,
                                   int lane, Result<kDim>& r) {
  using L = Layout<kDim>;
  const DecodeItem item = work.item;
  const int head = work.head;
  const bool wide = p.group > 8;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 1);
    r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 2);
  }
  auto* buffer = reinterpret_cast<float4*>(shared + L::kMerge) + lane;
  const int warp_vectors = L::merge_vectors(wide) * 32;
#pragma unroll 1
  for (int left = kWarps; left > 1;) {
    const int pairs = min(left / 2, L::merge_slots(wide));
    const int receiver = left - 2 * pairs, giver = left - pairs;
    if (warp >= giver && warp < left) r.store(buffer + (warp - giver) * warp_vectors, wide);
    __syncthreads();
    if (warp >= receiver && warp < giver) r.merge(buffer + (warp - receiver) * warp_vectors, wide);
    __syncthreads();
    left = giver;
  }
  if (warp == 0) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int g = lane / 4 + 8 * h;
      if (g >= p.group) continue;
      const int q_head = head * p.group + g;
      if (item.parts == 1) {
        const float inverse = 1.0f / r.sum[h];
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          store_out<kDim, kExact>(p, item.token, q_head, n * 8 + (lane & 3) * 2,
                                  r.out[n][2 * h] * inverse, r.out[n][2 * h + 1] * inverse);
        }
      } else {
        const int64_t at = int64_t{item.slot} * p.a.q_heads + q_head;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n) {
          *reinterpret_cast<float2*>(p.partial + at * kDim + n * 8 + (lane & 3) * 2) =
              make_float2(r.out[n][2 * h], r.out[n][2 * h + 1]);
        }
        if ((lane & 3) == 0) p.partial_max_sum[at] = make_float2(r.max[h], r.sum[h]);
      }
    }
  }
  if (item.parts == 1) return;
  // Many parts meet in two steps, so that no block has to merge them all: first some neighbours,
  // then what became of these. Counters are those of the first part's slot.
  const int first = item.slot - item.part;
  const int kv_heads = p.a.kv.kv_heads;
  constexpr int kOneStep = 12, kNeighbours = 8;
  if (item.parts <= kOneStep) {
    if (!arrive(p.arrived + int64_t{first} * kv_heads + head, item.parts, shared + L::kLast))
      return;
    merge_parts<kDim, kExact>(p, item.token, head, first, item.parts, 1, true);
    return;
  }
  const int from = item.part / kNeighbours * kNeighbours;
  const int neighbours = min(kNeighbours, item.parts - from);
  if (!arrive(p.arrived + int64_t{first + from} * kv_heads + head, neighbours, shared + L::kLast)) {
    return;
  }
  merge_parts<kDim, kExact>(p, item.token, head, first + from, neighbours, 1, false);
  const int groups = (item.parts + kNeighbours - 1) / kNeighbours;
  unsigned* arrived = p.arrived + int64_t{p.a.max_items + first} * kv_heads + head;
  if (!arrive(arrived, groups, shared + L::kLast)) return;
  merge_parts<kDim, kExact>(p, item.token, head, first, groups, kNeighbours, true);
}

}  // namespace trireme::cuda::decode
