// Decode attention: how one launch works, and its kernel.
//
// A thread block takes a span of items (plan_decode) for one KV head; all query heads of that
// head's group are the rows, padded to 16, of the tensor cores' products, so K and V are read once.
// Each of the block's warps walks its own 16-position tiles of the items with a ring of
// asynchronous copies that runs ahead over the ends of items, and keeps its own running softmax; at
// an item's end the warps' results are merged through shared memory. Parts of a row meet in the
// workspace, where the last block to arrive merges them.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/decode_attention_ptx.cuh"
#include "kernels/cuda/head_prepare.cuh"

namespace trireme::cuda::decode {

using bf16 = __nv_bfloat16;

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 16;            // positions a tile, and rows (query heads) of the products
constexpr float kLowest = -1.0e30f;  // below any score, and finite: kLowest - kLowest is 0

struct Params {
  DecodeAttention a;
  int group = 0;
  float score_scale = 0.0f;           // log2(e) * scale, or scale / softcap
  float softcap_log2 = 0.0f;          // softcap * log2(e)
  float* partial = nullptr;           // [max_items][q_heads][kDim]
  float2* partial_max_sum = nullptr;  // [max_items][q_heads]
  unsigned* arrived = nullptr;        // [max_items][kv_heads], of a row's first item; 0 at rest
};

// Shared memory, in this order. kDim: head_dim, or the next size there is a kernel for.
template <int kDim>
struct Layout {
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kTileBytes = kTile * kRowBytes;  // of K, or of V
  static constexpr int kStages = kDim <= 64 ? 6 : kDim <= 80 ? 5 : kDim <= 96 ? 4 : 3;
  static constexpr int kRing = 0;  // [warp][stage] K tile, V tile
  static constexpr int kQuery = kRing + kWarps * kStages * 2 * kTileBytes;  // tile of queries
  static constexpr int kNewest = kQuery + kTileBytes;        // the newest token's k, then v
  static constexpr int kRotation = kNewest + 2 * kRowBytes;  // float2 [kDim / 2]
  static constexpr int kLast = kRotation + kDim / 2 * 8;     // int: this block merges the parts
  static constexpr int kMerge = kLast + 16;                  // [kWarps / 2] results of a warp
  // float4 a lane; rows 8 to 15 only count where the group is larger than 8.
  static constexpr __host__ __device__ int merge_vectors(bool wide) {
    return (wide ? kDim / 8 : kDim / 16) + 1;
  }
  static constexpr int bytes(bool wide) {
    return kMerge + kWarps / 2 * merge_vectors(wide) * 32 * 16;
  }
};

// Where 16-byte unit `unit` of row `row` lies in a tile: rotated so that the same unit of 8
// consecutive rows falls into 8 different groups of banks.
template <int kDim>
__device__ inline int unit_offset(int row, int unit) {
  constexpr int kUnits = kDim / 8;
  constexpr int kPower = (kUnits & -kUnits) > 8 ? 8 : (kUnits & -kUnits);
  return row * kDim * 2 + (unit ^ ((row / (8 / kPower)) & (kPower - 1))) * 16;
}

// The tiles of one warp in order, over all items of all spans of its block, as copies into its
// ring.
template <int kDim, bool kExact>
class TileStream {
 public:
  __device__ TileStream(const Params& p, uint32_t ring, int warp, int lane, int item_count)
      : p_(p), ring_(ring), warp_(warp), lane_(lane), item_count_(item_count), unit_(blockIdx.x) {
    open_span();
    if (!done_) skip_to_tile();
  }

  // Requests the next tile into `stage`; always commits a group.
  __device__ void request(int stage) {
    if (!done_) {
      copy(ring_ + stage * 2 * L::kTileBytes);
      tile_ += kWarps;
      skip_to_tile();
    }
    copy_commit();
  }

 private:
  using L = Layout<kDim>;

  __device__ void open_span() {
    const int span = unit_ / p_.a.kv.kv_heads;
    done_ = true;
    if (span >= item_count_) return;
    item_ = p_.a.items[span].span_begin;
    item_end_ = p_.a.items[span].span_end;
    if (item_ >= item_end_) return;
    done_ = false;
    head_ = unit_ - span * p_.a.kv.kv_heads;
    open_item();
  }

  __device__ void open_item() {
    const DecodeItem item = p_.a.items[item_];
    table_ = p_.a.tables.blocks + p_.a.tables.table_begin[item.row];
    begin_ = item.begin;
    // The newest position is not in the cache yet.
    end_ = item.end - (item.part == item.parts - 1 ? 1 : 0);
    tile_ = item.begin / kTile + warp_;
    tile_end_ = (item.end - 1) / kTile + 1;
  }

  // To the next tile there is, and its lookup in the block table, so that the entry is there when
  // the tile is requested.
  __device__ void skip_to_tile() {
    while (tile_ >= tile_end_) {
      if (++item_ < item_end_) {
        open_item();
        continue;
      }
      unit_ += gridDim.x;
      open_span();
      if (done_) return;
    }
    const int position = tile_ * kTile + (lane_ & (kTile - 1));
    const DeviceKv& kv = p_.a.kv;
    slot_ = -1;
    if (position >= begin_ && position < end_) {
      const int entry = position / kv.block_size;
      slot_ = position - entry * kv.block_size;
      block_ = table_[entry];
    }
  }

  __device__ void copy(uint32_t to) {
    const DeviceKv& kv = p_.a.kv;
    const auto* k = static_cast<const bf16*>(kv.k);
    const auto* v = static_cast<const bf16*>(kv.v);
    // Row of the cache seen as [blocks * kv_heads * block_size][head_dim]; one a lane, 16 lanes.
    const int mine = slot_ < 0 ? -1 : (block_ * kv.kv_heads + head_) * kv.block_size + slot_;
    if constexpr (kExact) {
      constexpr int kUnits = kDim / 8;
#pragma unroll
      for (int i = 0; i < kUnits / 2; ++i) {
        const int index = lane_ + 32 * i;
        const int row = index / kUnits;
        const int unit = index - row * kUnits;
        const int from = __shfl_sync(0xffffffffu, mine, row);
        const int64_t offset = from < 0 ? 0 : int64_t{from} * kDim + unit * 8;
        const uint32_t at = to + unit_offset<kDim>(row, unit);
        copy16_async(at, k + offset, from >= 0);
        copy16_async(at + L::kTileBytes, v + offset, from >= 0);
      }
    } else {
      const int row = lane_ & (kTile - 1);
      const int64_t offset = mine < 0 ? 0 : int64_t{mine} * kv.head_dim;
      if (kv.head_dim % 8 == 0) {
        for (int unit = lane_ / kTile; unit < kv.head_dim / 8; unit += 2) {
          const uint32_t at = to + unit_offset<kDim>(row, unit);
          copy16_async(at, k + offset + unit * 8, mine >= 0);
          copy16_async(at + L::kTileBytes, v + offset + unit * 8, mine >= 0);
        }
      } else {
        for (int word = lane_ / kTile; word < kv.head_dim / 2; word += 2) {
          const uint32_t at = to + unit_offset<kDim>(row, word / 4) + word % 4 * 4;
          copy4_async(at, k + offset + word * 2, mine >= 0);
          copy4_async(at + L::kTileBytes, v + offset + word * 2, mine >= 0);
        }
      }
    }
  }

  const Params& p_;
  const uint32_t ring_;
  const int warp_, lane_, item_count_;
  int unit_;  // span * kv_heads + head
  bool done_ = true;
  int item_ = 0, item_end_ = 0, head_ = 0;
  const int32_t* table_ = nullptr;
  int begin_ = 0, end_ = 0, tile_ = 0, tile_end_ = 0;
  int slot_ = -1, block_ = 0;
};

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

// Queries into their tile; for the newest position also k and v, into shared memory and the cache.
template <int kDim>
__device__ inline void prepare_item(const Params& p, const DecodeItem& item, int head,
                                    uint8_t* shared, int warp, int lane) {
  using L = Layout<kDim>;
  const DecodeAttention& a = p.a;
  const int dim = a.kv.head_dim;
  const DeviceRow row = a.rows[item.row];
  auto* rotation = reinterpret_cast<float2*>(shared + L::kRotation);
  for (int i = threadIdx.x; i < a.prepare.rotary_dim / 2; i += kThreads) {
    rotation[i] = rope_rotation(a.prepare, row.position, i);
  }
  __syncthreads();
  constexpr int kPairs = (kDim + 63) / 64;
  const auto* q =
      static_cast<const bf16*>(a.q) + row.token_begin * a.q_stride + int64_t{head} * p.group * dim;
  for (int g = warp; g < p.group; g += kWarps) {
    prepare_head<kPairs>(q + g * dim, a.prepare.q_norm, a.prepare.norm_eps, rotation, dim,
                         a.prepare.rotary_dim, lane, [&](int d, float x) {
                           const int at = unit_offset<kDim>(g, d / 8) + d % 8 * 2;
                           *reinterpret_cast<bf16*>(shared + L::kQuery + at) = __float2bfloat16(x);
                         });
  }
  // The warps with the fewest queries: the last takes k, the one before v.
  if (item.part == item.parts - 1 && warp >= kWarps - 2) {
    const int entry = row.position / a.kv.block_size;
    const int64_t block = a.tables.blocks[a.tables.table_begin[item.row] + entry];
    const int64_t slot = ((block * a.kv.kv_heads + head) * a.kv.block_size + row.position -
                          entry * a.kv.block_size) *
                         dim;
    const int64_t from = row.token_begin * a.kv_stride + int64_t{head} * dim;
    auto* newest = reinterpret_cast<bf16*>(shared + L::kNewest);
    if (warp == kWarps - 1) {
      bf16* cache = static_cast<bf16*>(a.kv.k) + slot;
      prepare_head<kPairs>(static_cast<const bf16*>(a.k) + from, a.prepare.k_norm,
                           a.prepare.norm_eps, rotation, dim, a.prepare.rotary_dim, lane,
                           [&](int d, float x) { cache[d] = newest[d] = __float2bfloat16(x); });
    } else {
      bf16* cache = static_cast<bf16*>(a.kv.v) + slot;
      const bf16* v = static_cast<const bf16*>(a.v) + from;
      for (int d = lane; d < dim; d += 32) cache[d] = newest[kDim + d] = v[d];
    }
  }
  __syncthreads();
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
    constexpr int kBatch = 8;
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
__device__ inline void finish_item(const Params& p, const DecodeItem& item, int index, int head,
                                   uint8_t* shared, int warp, int lane, Result<kDim>& r) {
  using L = Layout<kDim>;
  const bool wide = p.group > 8;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 1);
    r.sum[h] += __shfl_xor_sync(0xffffffffu, r.sum[h], 2);
  }
  auto* buffer = reinterpret_cast<float4*>(shared + L::kMerge) + lane;
  const int warp_vectors = L::merge_vectors(wide) * 32;
#pragma unroll
  for (int half = kWarps / 2; half > 0; half /= 2) {
    if (warp >= half && warp < 2 * half) r.store(buffer + (warp - half) * warp_vectors, wide);
    __syncthreads();
    if (warp < half) r.merge(buffer + warp * warp_vectors, wide);
    __syncthreads();
  }
  const int token = p.a.rows[item.row].token_begin;
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
          store_out(p, token, q_head, n * 8 + (lane & 3) * 2, r.out[n][2 * h] * inverse,
                    r.out[n][2 * h + 1] * inverse);
        }
      } else {
        const int64_t at = int64_t{index} * p.a.q_heads + q_head;
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
    __threadfence();
    __syncwarp();
    if (lane == 0) {
      // Wraps to 0 with the last part: the next launch finds it as this one did.
      unsigned* arrived = p.arrived + int64_t{index - item.part} * p.a.kv.kv_heads + head;
      *last = atomicInc(arrived, static_cast<unsigned>(item.parts - 1)) ==
              static_cast<unsigned>(item.parts - 1);
      __threadfence();
    }
  }
  __syncthreads();
  if (*last != 0) merge_parts<kDim>(p, token, head, index - item.part, item.parts);
}

template <int kDim, bool kExact>
__global__ void __launch_bounds__(kThreads) attend(const __grid_constant__ Params p) {
  using L = Layout<kDim>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  let_next_kernel_start();
  // Queries' rows beyond the group and dimensions beyond head_dim stay zero throughout.
  for (int i = threadIdx.x * 16; i < (kExact ? L::kRotation - L::kQuery : L::kRotation);
       i += kThreads * 16) {
    *reinterpret_cast<uint4*>(shared + (kExact ? L::kQuery : 0) + i) = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();

  if (!p.a.early_context) wait_for_previous_kernel();
  const int item_count = *p.a.item_count;
  uint8_t* ring = shared + L::kRing + warp * L::kStages * 2 * L::kTileBytes;
  TileStream<kDim, kExact> stream(p, shared_address(ring), warp, lane, item_count);
#pragma unroll 1
  for (int stage = 0; stage < L::kStages; ++stage) stream.request(stage);
  if (p.a.early_context) wait_for_previous_kernel();

  constexpr bool kKeepQueries = kDim <= 128;
  uint32_t kept[kKeepQueries ? kDim / 16 : 1][4];
  const uint32_t query_tile = shared_address(shared + L::kQuery);
  const auto load_query = [&](int step, uint32_t(&to)[4]) {
    load_matrices(
        to, query_tile + unit_offset<kDim>((lane & 7) + (lane / 8 & 1) * 8, step * 2 + lane / 16));
  };
  const auto queries = [&](int step, uint32_t(&to)[4]) {
    if constexpr (kKeepQueries) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = kept[step][i];
    } else {
      load_query(step, to);
    }
  };

  Result<kDim> r;
  int stage = 0;
  for (int unit = blockIdx.x; unit / p.a.kv.kv_heads < item_count; unit += gridDim.x) {
    const int head = unit % p.a.kv.kv_heads;
    const int item_begin = p.a.items[unit / p.a.kv.kv_heads].span_begin;
    const int item_end = p.a.items[unit / p.a.kv.kv_heads].span_end;
    if (item_begin >= item_end) break;
    for (int index = item_begin; index < item_end; ++index) {
      const DecodeItem item = p.a.items[index];
      prepare_item<kDim>(p, item, head, shared, warp, lane);
      if constexpr (kKeepQueries) {
#pragma unroll
        for (int step = 0; step < kDim / 16; ++step) load_query(step, kept[step]);
      }
      r.clear();
      const int newest = item.part == item.parts - 1 ? item.end - 1 : -1;
#pragma unroll 1
      for (int tile = item.begin / kTile + warp; tile * kTile < item.end; tile += kWarps) {
        copy_wait<L::kStages - 1>();
        __syncwarp();
        uint8_t* k_tile = ring + stage * 2 * L::kTileBytes;
        if (newest >= 0 && newest / kTile == tile) {
          patch_newest<kDim>(shared, k_tile, newest % kTile, lane);
        }
        attend_tile<kDim>(p, shared_address(k_tile), queries, lane, tile * kTile, item.begin,
                          item.end, r);
        __syncwarp();
        stream.request(stage);
        stage = stage + 1 == L::kStages ? 0 : stage + 1;
      }
      finish_item<kDim>(p, item, index, head, shared, warp, lane, r);
    }
  }
  copy_wait<0>();
}

}  // namespace trireme::cuda::decode
