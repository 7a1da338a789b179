// The items of a thread block in turn, and what is done with q, k and v of each before its tiles.
#pragma once

#include "kernels/cuda/decode_attention_tiles.cuh"
#include "kernels/cuda/head_prepare.cuh"

namespace trireme::cuda::decode {

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
template <int kDim, bool kExact>
struct Vectors {
  static constexpr int kMost = (kTile + 2 + kWarps - 1) / kWarps;
  HeadPairs<(kDim + 63) / 64> pairs[kMost];
  int block;

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
    const int dim = head_dim_of<kDim, kExact>(p), vectors = count(p, w.item);
    const auto* q = static_cast<const Element*>(a.q) + w.item.token * a.q_stride +
                    int64_t{w.head} * p.group * dim;
    const int64_t kv = w.item.token * a.kv_stride + int64_t{w.head} * dim;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int g = warp + i * kWarps;
      if (g >= vectors) break;
      const Element* from =
          g < p.group ? q + g * dim : static_cast<const Element*>(g == p.group ? a.k : a.v) + kv;
      pairs[i].load(from, dim, a.prepare.rotary_dim, lane);
    }
  }

  // Queries into their tile, k and v into their places in shared memory.
  __device__ void prepare(const Params& p, const Work& w, uint8_t* shared, int warp, int lane) {
    using L = Layout<kDim>;
    const HeadPrepare& prepare = p.a.prepare;
    const int dim = head_dim_of<kDim, kExact>(p), vectors = count(p, w.item);
    const auto* norms = reinterpret_cast<const float*>(shared + L::kNorm);
    const auto* rotation = reinterpret_cast<const float2*>(shared + L::kRotation);
#pragma unroll 1  // the code is long: the vectors move up instead
    for (int g = warp; g < vectors; g += kWarps) {
      const bool is_q = g<p.group, is_v = g> p.group;
      const float* norm = is_q ? prepare.q_norm : is_v ? nullptr : prepare.k_norm;
      if (norm != nullptr) norm = is_q ? norms : norms + kDim;
      const int row = is_q ? g : 0;
      uint8_t* to = shared + (is_q ? L::kQuery : is_v ? L::kNewest + L::kRowBytes : L::kNewest);
      pairs[0].prepare(norm, prepare.norm_eps, is_v ? nullptr : rotation, dim, prepare.rotary_dim,
                       lane, [&](int d, float x) {
                         const int at = unit_offset<kDim>(row, d / 8) + d % 8 * 2;
                         *reinterpret_cast<Element*>(to + at) = narrow(x);
                       });
#pragma unroll
      for (int i = 1; i < kMost; ++i) pairs[i - 1] = pairs[i];
    }
  }

  // The newest token's k and v from shared memory to the cache; one warp.
  __device__ void store_newest(const Params& p, const Work& w, const uint8_t* shared,
                               int lane) const {
    using L = Layout<kDim>;
    const DeviceKv& kv = p.a.kv;
    const int dim = head_dim_of<kDim, kExact>(p);
    const int in_block = w.item.position % kv.block_size;
    const int64_t slot = ((int64_t{block} * kv.kv_heads + w.head) * kv.block_size + in_block) * dim;
    const bool units = dim % 8 == 0;
    const int count = units ? dim / 8 : dim / 2;
    for (int i = lane; i < 2 * count; i += 32) {
      const int v = i >= count ? 1 : 0, at = i - v * count;
      const uint8_t* from = shared + L::kNewest + v * L::kRowBytes;
      auto* to = static_cast<Element*>(v != 0 ? kv.v : kv.k) + slot;
      if (units) {
        reinterpret_cast<uint4*>(to)[at] = reinterpret_cast<const uint4*>(from)[at];
      } else {
        reinterpret_cast<uint32_t*>(to)[at] = reinterpret_cast<const uint32_t*>(from)[at];
      }
    }
  }
};

// The whole block; the rotations of an item's position. inv_freq: the thread's.
template <int kDim>
__device__ inline void rotate_to(const Params& p, const DecodeItem& item, float inv_freq,
                                 uint8_t* shared) {
  static_assert(kDim / 2 <= kThreads);
  auto* rotation = reinterpret_cast<float2*>(shared + Layout<kDim>::kRotation);
  if (threadIdx.x < p.a.prepare.rotary_dim / 2) {
    rotation[threadIdx.x] = rope_rotation(inv_freq, p.a.prepare.magnitude, item.position);
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

}  // namespace trireme::cuda::decode
