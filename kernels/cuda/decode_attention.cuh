// Decode attention: how one launch works, and its kernel.
//
// A thread block takes a span of items (plan_decode) for one KV head; all query heads of that
// head's group are the rows, padded to 16, of the tensor cores' products, so K and V are read once.
// Each of the block's warps walks its own 16-position tiles of the items with a ring of
// asynchronous copies that runs ahead over the ends of items, and keeps its own running softmax; at
// an item's end the warps' results are merged through shared memory. Parts of a row meet in the
// workspace, where the last block to arrive merges them.
#pragma once

#include "kernels/cuda/decode_attention_tiles.cuh"
#include "kernels/cuda/head_prepare.cuh"

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

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Two weights as the bf16 pair that the product takes; the sum is of what was rounded.
__device__ inline uint32_t weigh(float& s0, float& s1, float max, float& sum) {
  const uint32_t pair = pack(exp2_fast(s0 - max), exp2_fast(s1 - max));
  sum += __uint_as_float(pair << 16) + __uint_as_float(pair & 0xffff0000u);
  return pair;
}

// One tile: scores of 16 positions from `begin` on, softmax, weighted sum of V. `queries`: their
// tile in shared memory, or the fragments where they fit the registers.
template <int kDim, typename Queries>
__device__ inline void attend_tile(const Params& p, uint32_t k_tile, const Queries& queries,
                                   int lane, int position, int begin, int end, Result<kDim>& r) {
  const int part = lane / 8, line = lane & 7;
  float score[2][4] = {};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[4], b[4];
    queries(step, a);
    load_matrices(b, k_tile + unit_offset<kDim>(line + part / 2 * 8, step * 2 + (part & 1)));
    multiply_add(score[0], a, b[0], b[1]);
    multiply_add(score[1], a, b[2], b[3]);
  }
#pragma unroll
  for (auto& s : score) {
#pragma unroll
    for (float& x : s) {
      x *= p.score_scale;
      if (p.softcap_log2 != 0.0f) x = p.softcap_log2 * tanhf(x);
    }
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

// An item and the head it is done for; index < 0: there are no more.
struct alignas(16) Work {
  DecodeItem item;
  int index, head, unit, unused;
};
static_assert(sizeof(Work) == 64 && sizeof(DecodeItem) == 48);

// What follows the item whose end is (next, head, unit), as a word a lane; one warp.
__device__ inline int load_work(const Params& p, int next, int head, int unit, int item_count,
                                int lane) {
  if (next < 0) {
    const int span = unit / p.a.kv.kv_heads;
    head = unit - span * p.a.kv.kv_heads;
    next = starts_span(p, span, item_count) ? span : -1;
  }
  constexpr int kWords = sizeof(DecodeItem) / 4;
  if (lane >= kWords) return lane == kWords ? next : lane == kWords + 1 ? head : unit;
  return next < 0 ? 0 : reinterpret_cast<const int*>(p.a.items + next)[lane];
}

__device__ inline int load_following(const Params& p, const Work& w, int item_count, int lane) {
  if (w.index < 0) return lane == sizeof(DecodeItem) / 4 ? -1 : 0;
  const int unit = w.item.next < 0 ? w.unit + static_cast<int>(gridDim.x) : w.unit;
  return load_work(p, w.item.next, w.head, unit, item_count, lane);
}

__device__ inline void store_work(Work* to, int word, int lane) {
  if (lane < sizeof(Work) / 4) reinterpret_cast<int*>(to)[lane] = word;
}

// One item's q, and k and v where it has the newest token: what a warp of the block has of them,
// and where k and v go.
template <int kDim>
struct Vectors {
  static constexpr int kMost = (kTile + 2 + kWarps - 1) / kWarps;
  HeadPairs<(kDim + 63) / 64> pairs[kMost];
  int block;  // of the cache, where there is a newest token

  __device__ static int count(const Params& p, const DecodeItem& item) {
    return p.group + (item.part == item.parts - 1 ? 2 : 0);
  }

  // Needs nothing of the previous kernel.
  __device__ void look_up(const Params& p, const DecodeItem& item) {
    if (item.part != item.parts - 1) return;
    const int table = item.table >= 0 ? item.table : p.a.tables.table_begin[item.row];
    block = p.a.tables.blocks[table + item.position / p.a.kv.block_size];
  }

  __device__ void load(const Params& p, const Work& w, int warp, int lane) {
    const DecodeAttention& a = p.a;
    const int dim = a.kv.head_dim, vectors = count(p, w.item);
    const auto* q =
        static_cast<const bf16*>(a.q) + w.item.token * a.q_stride + int64_t{w.head} * p.group * dim;
    const int64_t kv = w.item.token * a.kv_stride + int64_t{w.head} * dim;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int g = warp + i * kWarps;
      if (g >= vectors) break;
      const bf16* from =
          g < p.group ? q + g * dim : static_cast<const bf16*>(g == p.group ? a.k : a.v) + kv;
      pairs[i].load(from, dim, a.prepare.rotary_dim, lane);
    }
  }

  // Queries into their tile; k and v into shared memory and the cache.
  __device__ void prepare(const Params& p, const Work& w, uint8_t* shared, int warp,
                          int lane) const {
    using L = Layout<kDim>;
    const DecodeAttention& a = p.a;
    const int dim = a.kv.head_dim, rotary = a.prepare.rotary_dim, vectors = count(p, w.item);
    const float eps = a.prepare.norm_eps;
    const auto* norms = reinterpret_cast<const float*>(shared + L::kNorm);
    const auto* rotation = reinterpret_cast<const float2*>(shared + L::kRotation);
    auto* newest = reinterpret_cast<bf16*>(shared + L::kNewest);
    const int in_block = w.item.position % a.kv.block_size;
    const int64_t slot =
        ((int64_t{block} * a.kv.kv_heads + w.head) * a.kv.block_size + in_block) * dim;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int g = warp + i * kWarps;
      if (g >= vectors) break;
      if (g < p.group) {
        pairs[i].prepare(a.prepare.q_norm != nullptr ? norms : nullptr, eps, rotation, dim, rotary,
                         lane, [&](int d, float x) {
                           const int at = unit_offset<kDim>(g, d / 8) + d % 8 * 2;
                           *reinterpret_cast<bf16*>(shared + L::kQuery + at) = __float2bfloat16(x);
                         });
      } else if (g == p.group) {
        bf16* cache = static_cast<bf16*>(a.kv.k) + slot;
        pairs[i].prepare(a.prepare.k_norm != nullptr ? norms + kDim : nullptr, eps, rotation, dim,
                         rotary, lane,
                         [&](int d, float x) { cache[d] = newest[d] = __float2bfloat16(x); });
      } else {
        auto* cache = static_cast<uint16_t*>(a.kv.v) + slot;
        auto* newest_v = reinterpret_cast<uint16_t*>(newest + kDim);
        pairs[i].copy(dim, rotary, lane, [&](int d, uint16_t x) { cache[d] = newest_v[d] = x; });
      }
    }
  }
};

// The whole block; what the rotation of an item's position is.
template <int kDim>
__device__ inline void rotate_to(const Params& p, const DecodeItem& item, uint8_t* shared) {
  auto* rotation = reinterpret_cast<float2*>(shared + Layout<kDim>::kRotation);
  for (int i = threadIdx.x; i < p.a.prepare.rotary_dim / 2; i += kThreads) {
    rotation[i] = rope_rotation(p.a.prepare, item.position, i);
  }
}

// The newest token's k and v into the tile that holds its position; one warp.
template <int kDim>
__device__ inline void patch_newest(uint8_t* shared, uint8_t* k_tile, int row, int lane) {
  using L = Layout<kDim>;
  for (int unit = lane; unit < 2 * (kDim / 8); unit += 32) {
    const int v = unit >= kDim / 8 ? 1 : 0;
    const int at = unit_offset<kDim>(row, unit - v * (kDim / 8)) + v * L::kTileBytes;
    *reinterpret_cast<uint4*>(k_tile + at) =
        *reinterpret_cast<const uint4*>(shared + L::kNewest + unit * 16);
  }
  __syncwarp();
}

__device__ inline void store_out(const Params& p, int token, int q_head, int d, float x, float y) {
  if (d >= p.a.kv.head_dim) return;
  auto* out =
      static_cast<bf16*>(p.a.out) + (int64_t{token} * p.a.q_heads + q_head) * p.a.kv.head_dim + d;
  *reinterpret_cast<__nv_bfloat162*>(out) = __floats2bfloat162_rn(x, y);
}

// The whole block merges the parts of a row, which lie in the workspace from `first` on.
template <int kDim>
__device__ inline void merge_parts(const Params& p, int token, int head, int first, int parts) {
  const int64_t stride = p.a.q_heads;
  for (int i = threadIdx.x; i < p.group * (kDim / 4); i += kThreads) {
    const int q_head = head * p.group + i / (kDim / 4);
    const int d = i % (kDim / 4) * 4;
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float max = kLowest, sum = 0.0f;
    constexpr int kBatch = 16;
    for (int part = 0; part < parts; part += kBatch) {
      float4 x[kBatch];
      float2 s[kBatch];
      float top = max;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int64_t at = (first + min(part + j, parts - 1)) * stride + q_head;
        x[j] = __ldcg(reinterpret_cast<const float4*>(p.partial + at * kDim + d));
        s[j] = __ldcg(p.partial_max_sum + at);
        if (part + j >= parts) s[j] = make_float2(kLowest, 0.0f);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) top = fmaxf(top, s[j].x);
      const float mine = exp2_fast(max - top);
      out = make_float4(out.x * mine, out.y * mine, out.z * mine, out.w * mine);
      sum *= mine;
      max = top;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const float theirs = part + j < parts ? exp2_fast(s[j].x - top) : 0.0f;
        sum += s[j].y * theirs;
        out.x += x[j].x * theirs;
        out.y += x[j].y * theirs;
        out.z += x[j].z * theirs;
        out.w += x[j].w * theirs;
      }
    }
    const float inverse = 1.0f / sum;
    store_out(p, token, q_head, d, out.x * inverse, out.y * inverse);
    store_out(p, token, q_head, d + 2, out.z * inverse, out.w * inverse);
  }
}

// Warps' results of one item to `out`, or to the workspace if the row has other parts.
template <int kDim>
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
  for (int left = kWarps; left > 1;) {
    const int pairs = min(left / 2, L::kMergeSlots);
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
          store_out(p, item.token, q_head, n * 8 + (lane & 3) * 2, r.out[n][2 * h] * inverse,
                    r.out[n][2 * h + 1] * inverse);
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
  auto* last = reinterpret_cast<int*>(shared + L::kLast);
  if (warp == 0) {
    __syncwarp();
    if (lane == 0) {
      __threadfence();
      // Wraps to 0 with the last part: the next launch finds it as this one did.
      unsigned* arrived = p.arrived + int64_t{item.slot - item.part} * p.a.kv.kv_heads + head;
      *last = atomicInc(arrived, static_cast<unsigned>(item.parts - 1)) ==
              static_cast<unsigned>(item.parts - 1);
      __threadfence();
    }
  }
  __syncthreads();
  if (*last != 0) merge_parts<kDim>(p, item.token, head, item.slot - item.part, item.parts);
}

template <int kDim, bool kExact>
__global__ void __launch_bounds__(kThreads) attend(const __grid_constant__ Params p) {
  using L = Layout<kDim>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  let_next_kernel_start();
  if (!p.a.early_context) wait_for_previous_kernel();

  const int item_count = *p.a.item_count;
  uint8_t* ring = shared + L::kRing + warp * L::kStages * 2 * L::kTileBytes;
  if constexpr (!kExact) {
    // Dimensions beyond head_dim stay zero throughout.
    for (int i = threadIdx.x * 16; i < L::kQuery; i += kThreads * 16) {
      *reinterpret_cast<uint4*>(shared + i) = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
  }
  TileStream<kDim, kExact> stream(p, shared_address(ring), warp, lane, item_count);
#pragma unroll 1
  for (int stage = 0; stage < L::kStages; ++stage) stream.request(stage);

  // The first two items; queries' rows beyond the group, like dimensions beyond head_dim, are zero.
  auto* works = reinterpret_cast<Work*>(shared + L::kWork);
  if (warp == 0) {
    store_work(works, load_work(p, -1, 0, blockIdx.x, item_count, lane), lane);
    __syncwarp();
    store_work(works + 1, load_following(p, works[0], item_count, lane), lane);
  }
  for (int i = threadIdx.x * 16; i < L::kNorm - L::kQuery; i += kThreads * 16) {
    *reinterpret_cast<uint4*>(shared + L::kQuery + i) = make_uint4(0, 0, 0, 0);
  }
  auto* norms = reinterpret_cast<float*>(shared + L::kNorm);
  for (int d = threadIdx.x; d < p.a.kv.head_dim; d += kThreads) {
    if (p.a.prepare.q_norm != nullptr) norms[d] = p.a.prepare.q_norm[d];
    if (p.a.prepare.k_norm != nullptr) norms[kDim + d] = p.a.prepare.k_norm[d];
  }
  __syncthreads();
  int turn = 0;  // of three Works: this item, the next, and where the one after it goes
  Vectors<kDim> vectors;
  if (works[0].index >= 0) {
    rotate_to<kDim>(p, works[0].item, shared);
    vectors.look_up(p, works[0].item);
  }
  if (p.a.early_context) wait_for_previous_kernel();
  if (works[0].index >= 0) vectors.load(p, works[0], warp, lane);
  __syncthreads();

  constexpr bool kRegisters = kDim <= 128;  // enough of them for the queries and the next item's
  uint32_t kept[kRegisters ? kDim / 16 : 1][4];
  const uint32_t query_tile = shared_address(shared + L::kQuery);
  const auto load_query = [&](int step, uint32_t(&to)[4]) {
    load_matrices(
        to, query_tile + unit_offset<kDim>((lane & 7) + (lane / 8 & 1) * 8, step * 2 + lane / 16));
  };
  const auto queries = [&](int step, uint32_t(&to)[4]) {
    if constexpr (kRegisters) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = kept[step][i];
    } else {
      load_query(step, to);
    }
  };

  Result<kDim> r;
  int stage = 0;
  while (works[turn].index >= 0) {
    const Work& work = works[turn];
    const int next = turn < 2 ? turn + 1 : 0, after = next < 2 ? next + 1 : 0;
    vectors.prepare(p, work, shared, warp, lane);
    __syncthreads();
    if constexpr (kRegisters) {
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) load_query(step, kept[step]);
    }
    // What the next items need arrives while this one is computed.
    int word = 0;
    if (warp == 0) word = load_following(p, works[next], item_count, lane);
    const bool more = works[next].index >= 0;
    if (more) {
      vectors.look_up(p, works[next].item);
      if constexpr (kRegisters) vectors.load(p, works[next], warp, lane);
      rotate_to<kDim>(p, works[next].item, shared);
    }

    r.clear();
    const int begin = work.item.begin, end = work.item.end;
    const int newest = work.item.part == work.item.parts - 1 ? end - 1 : -1;
#pragma unroll 1
    for (int tile = begin / kTile + warp; tile * kTile < end; tile += kWarps) {
      copy_wait<L::kStages - 1>();
      __syncwarp();
      uint8_t* k_tile = ring + stage * 2 * L::kTileBytes;
      if (newest >= 0 && newest / kTile == tile) {
        patch_newest<kDim>(shared, k_tile, newest % kTile, lane);
      }
      attend_tile<kDim>(p, shared_address(k_tile), queries, lane, tile * kTile, begin, end, r);
      __syncwarp();
      stream.request(stage);
      stage = stage + 1 == L::kStages ? 0 : stage + 1;
    }
    if (warp == 0) store_work(works + after, word, lane);
    finish_item<kDim>(p, work, shared, warp, lane, r);
    if constexpr (!kRegisters) {
      if (more) vectors.load(p, works[next], warp, lane);
    }
    turn = next;
  }
  copy_wait<0>();
}

}  // namespace trireme::cuda::decode
