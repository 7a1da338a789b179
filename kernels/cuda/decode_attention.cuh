// Decode attention: how one launch works, and its kernel.
//
// A thread block takes a span of items (plan_decode) for one KV head; all query heads of that
// head's group are the rows, padded to 16, of the tensor cores' products, so K and V are read once.
// Each of the block's warps walks its own 16-position tiles of the items with a ring of
// asynchronous copies that runs ahead over the ends of items, and keeps its own running softmax; at
// an item's end the warps' results are merged through shared memory. Parts of a row meet in the
// workspace, where the last block to arrive merges them.
#pragma once

#include "kernels/cuda/decode_attention_items.cuh"
#include "kernels/cuda/decode_attention_merge.cuh"
#include "kernels/cuda/decode_attention_result.cuh"
#include "kernels/cuda/decode_attention_tiles.cuh"

namespace trireme::cuda::decode {

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
  for (int stage = -1; stage < L::kStages; ++stage) stream.request(stage);

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
  const float inv_freq =
      threadIdx.x < p.a.prepare.rotary_dim / 2 ? p.a.prepare.inv_freq[threadIdx.x] : 0.0f;
  auto* norms = reinterpret_cast<float*>(shared + L::kNorm);
  for (int d = threadIdx.x; d < p.a.kv.head_dim; d += kThreads) {
    if (p.a.prepare.q_norm != nullptr) norms[d] = p.a.prepare.q_norm[d];
    if (p.a.prepare.k_norm != nullptr) norms[kDim + d] = p.a.prepare.k_norm[d];
  }
  __syncthreads();
  int turn = 0;  // of three Works: this item, the next, and where the one after it goes
  Vectors<kDim, kExact> vectors;
  if (works[0].index >= 0) {
    rotate_to<kDim>(p, works[0].item, inv_freq, shared);
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
    const bool has_newest = work.item.part == work.item.parts - 1;
    if (has_newest && warp == kWarps - 1) vectors.store_newest(p, work, shared, lane);
    // What the next items need arrives while this one is computed.
    int word = 0;
    if (warp == 0) word = load_following(p, works[next], item_count, lane);
    const bool more = works[next].index >= 0;
    if (more) {
      vectors.look_up(p, works[next].item);
      if constexpr (kRegisters) vectors.load(p, works[next], warp, lane);
      rotate_to<kDim>(p, works[next].item, inv_freq, shared);
    }

    r.clear();
    const int begin = work.item.begin, end = work.item.end;
    const int newest = has_newest ? end - 1 : -1;
#pragma unroll 1
    for (int tile = begin / kTile + warp; tile * kTile < end; tile += kWarps) {
      wait_for_copy_groups<L::kStages - 1>();
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
    finish_item<kDim, kExact>(p, work, shared, warp, lane, r);
    if constexpr (!kRegisters) {
      if (more) vectors.load(p, works[next], warp, lane);
    }
    turn = next;
  }
  wait_for_copy_groups<0>();
}

}  // namespace trireme::cuda::decode
