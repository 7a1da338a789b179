// The Hopper kernel's tiles, barriers and producers.
#pragma once

#include "kernels/cuda/prefill_attention.cuh"
#include "kernels/cuda/prefill_attention_math.cuh"
#include "kernels/cuda/prefill_attention_wgmma.cuh"

namespace trireme::cuda::hopper {

inline constexpr int kGroupThreads = 128;
inline constexpr int kConsumers = 2;
inline constexpr int kConsumerWarps = 4 * kConsumers;
inline constexpr int kThreads = kGroupThreads * (1 + kConsumers);
inline constexpr int kQueryLoaders = 96;
inline constexpr int kSlabBytes = 128;  // a row of 64 bf16 columns, the width of a swizzled tile

// Named barriers; 0 is __syncthreads'.
inline constexpr int kTurn = 1;   // + consumer: its turn to issue products
inline constexpr int kZeros = 3;  // + consumer: zeros are written

// kDim: the head size rounded up. Tiles are stored as slabs of 64 columns: [kDim / 64][rows][64].
template <int kDim_>
struct Shape {
  static constexpr int kDim = kDim_;
  static constexpr int kRows = kPrefillTileRows;
  static constexpr int kCols = kDim <= 128 ? 128 : 64;  // keys a tile
  static constexpr int kSlabs = kDim / 64;
  static constexpr int kStages = kDim <= 64 ? 4 : 2;
  static constexpr int kQueryBuffers = kDim <= 128 ? 2 : 1;
  static constexpr int kOutWidth = kDim < 128 ? kDim : 128;  // output columns a product
  static constexpr int kOutParts = kDim / kOutWidth;
  static constexpr int kQuerySlab = kRows * kSlabBytes;
  static constexpr int kQueryBytes = kSlabs * kQuerySlab;
  static constexpr int kKeySlab = kCols * kSlabBytes;
  static constexpr int kKeyBytes = kSlabs * kKeySlab;
  static constexpr int kAlignment = 1024;  // of a swizzled tile
  static constexpr int kSharedBytes =
      kQueryBuffers * kQueryBytes + 2 * kStages * kKeyBytes + kAlignment;
};

// One tile of queries of one head, as its consumers see it.
struct Work {
  int64_t token;  // of the first query in the batch
  int count;      // queries
  int first;      // position of the first query
  int base;       // position of the first key of key tile 0
  int tiles;      // key tiles; the last holds position first + count - 1
  int head;
  int row;
};

template <class S>
struct Barriers {
  uint64_t query_full[S::kQueryBuffers];
  uint64_t query_empty[S::kQueryBuffers];
  uint64_t key_full[S::kStages];
  uint64_t key_empty[S::kStages];
  uint64_t value_full[S::kStages];
  uint64_t value_empty[S::kStages];
  Work work[S::kQueryBuffers];
};

// A place in a ring of kSize buffers, and the parity of its turn.
template <int kSize>
struct Place {
  int index = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++index == kSize) {
      index = 0;
      parity ^= 1;
    }
  }
};

// The block's turn-th piece of work, or -1: rounds run to and fro over the blocks, so that with
// heavy tiles first every block gets about the same.
__device__ __forceinline__ int work_index(int turn, int total) {
  const int place = turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  const int64_t index = int64_t{turn} * gridDim.x + place;
  return index < total ? static_cast<int>(index) : -1;
}

template <class S>
__device__ __forceinline__ Work decode_work(const PrefillAttention& args, int index) {
  const PrefillTile tile = args.tiles[index / args.q_heads];
  const DeviceRow row = args.rows[tile.row];
  Work work;
  work.head = index % args.q_heads;
  work.row = tile.row;
  work.token = int64_t{row.token_begin} + tile.begin;
  work.count = min(S::kRows, row.count - tile.begin);
  work.first = row.position + tile.begin;
  const int begin = args.window > 0 ? max(0, work.first - args.window + 1) : 0;
  const int align = min(args.kv.block_size, S::kCols);
  work.base = begin / align * align;
  work.tiles = (work.first + work.count - work.base + S::kCols - 1) / S::kCols;
  return work;
}

// The producer warp of K and V. A lane looks up one page of the tile and issues its copies.
template <class S>
__device__ __forceinline__ void produce_keys_values(const PrefillAttention& args,
                                                    const CUtensorMap* k_map,
                                                    const CUtensorMap* v_map, Barriers<S>& barriers,
                                                    uint32_t k_tiles, uint32_t v_tiles) {
  const int lane = threadIdx.x % 32;
  const int total = args.tile_count * args.q_heads;
  const int block_size = args.kv.block_size;
  const int box_rows = min(block_size, S::kCols);
  const uint32_t box_bytes = box_rows * kSlabBytes;
  Place<S::kStages> k_place, v_place;

  const auto copy = [&](const CUtensorMap* map, uint64_t* full, uint64_t* empty, uint32_t tiles,
                        Place<S::kStages>& place, int row, int boxes) {
    const uint32_t barrier = shared_address(&full[place.index]);
    wait(shared_address(&empty[place.index]), place.parity ^ 1);
    if (lane == 0) expect_bytes(barrier, boxes * box_bytes * S::kSlabs);
    __syncwarp();
    if (lane < boxes) {
      const uint32_t to = tiles + place.index * S::kKeyBytes + lane * box_bytes;
#pragma unroll
      for (int slab = 0; slab < S::kSlabs; ++slab) {
        copy_box(to + slab * S::kKeySlab, map, slab * 64, row, barrier);
      }
    }
    place.advance();
  };

  for (int turn = 0;; ++turn) {
    const int index = work_index(turn, total);
    if (index < 0) break;
    const Work work = decode_work<S>(args, index);
    const int kv_head = work.head / (args.q_heads / args.kv.kv_heads);
    const int32_t* table = args.tables.blocks + args.tables.table_begin[work.row];
    const int end = work.first + work.count;
    int last_row = 0, last_boxes = 0;  // of the tile whose values are still to be copied
    for (int j = work.tiles - 1; j >= 0; --j) {
      const int begin = work.base + j * S::kCols;
      const int boxes = (min(S::kCols, end - begin) + box_rows - 1) / box_rows;
      const int position = begin + lane * box_rows;
      int row = 0;
      if (lane < boxes) {
        const int entry = position / block_size;
        row = (table[entry] * args.kv.kv_heads + kv_head) * block_size + position % block_size;
      }
      copy(k_map, barriers.key_full, barriers.key_empty, k_tiles, k_place, row, boxes);
      if (j + 1 < work.tiles) {
        copy(v_map, barriers.value_full, barriers.value_empty, v_tiles, v_place, last_row,
             last_boxes);
      }
      last_row = row;
      last_boxes = boxes;
    }
    copy(v_map, barriers.value_full, barriers.value_empty, v_tiles, v_place, last_row, last_boxes);
  }
}

// The three producer warps of queries, which also tell the consumers what to do. A piece of work
// without tiles is the end.
template <class S>
__device__ __forceinline__ void produce_queries(const PrefillAttention& args, Barriers<S>& barriers,
                                                uint32_t q_tiles) {
  constexpr int kChunks = S::kDim / 8;
  const int thread = threadIdx.x - (kGroupThreads - kQueryLoaders);
  const int total = args.tile_count * args.q_heads;
  const auto* q = static_cast<const __nv_bfloat16*>(args.q);
  Place<S::kQueryBuffers> place;
  for (int turn = 0;; ++turn) {
    const int index = work_index(turn, total);
    Work work{};
    if (index >= 0) work = decode_work<S>(args, index);
    wait(shared_address(&barriers.query_empty[place.index]), place.parity ^ 1);
    if (thread == 0) barriers.work[place.index] = work;
    if (index >= 0) {
      const uint32_t to = q_tiles + place.index * S::kQueryBytes;
      const auto* from = q + work.token * args.q_stride + int64_t{work.head} * args.kv.head_dim;
#pragma unroll 2
      for (int i = thread; i < S::kRows * kChunks; i += kQueryLoaders) {
        const int row = i / kChunks;
        const int chunk = i % kChunks;
        const bool valid = row < work.count && chunk * 8 < args.kv.head_dim;
        const uint32_t offset =
            chunk / 8 * S::kQuerySlab + row * kSlabBytes + (((chunk % 8) ^ (row % 8)) << 4);
        copy_async(to + offset, from + (valid ? row * args.q_stride + chunk * 8 : 0), valid);
      }
      asm volatile("cp.async.wait_all;" ::: "memory");
      fence_async_proxy();
    }
    arrive(shared_address(&barriers.query_full[place.index]));
    if (index < 0) break;
    place.advance();
  }
}

}  // namespace trireme::cuda::hopper
