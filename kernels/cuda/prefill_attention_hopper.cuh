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
inline constexpr int kQueryLoaders = 64;
inline constexpr int kSlabBytes = 128;  // a row of 64 columns, the width of a swizzled tile

// Named barriers; 0 is __syncthreads'.
inline constexpr int kTurn = 1;   // + consumer: its turn to issue products
inline constexpr int kZeros = 3;  // zeros are written

// kDim: the head size rounded up. Tiles are stored as slabs of 64 columns: [kDim / 64][rows][64].
template <int kDim_>
struct Shape {
  static constexpr int kDim = kDim_;
  static constexpr int kRows = kPrefillTileRows;
  static constexpr int kCols = kDim <= 128 ? 128 : 64;  // keys a tile
  static constexpr int kSlabs = kDim / 64;
  static constexpr int kStages = kDim <= 64 ? 4 : kDim <= 128 ? 3 : 2;
  static constexpr bool kQueriesInRegisters = kDim <= 128;  // shared memory is busy enough
  // Consumers issue their products in turns. Measured: +3% at head size 128, -2% at the others.
  static constexpr bool kTurns = kDim == 128;
  static constexpr int kOutWidth = kDim < 128 ? kDim : 128;  // output columns a product
  static constexpr int kOutParts = kDim / kOutWidth;
  static constexpr int kQuerySlab = kRows * kSlabBytes;
  static constexpr int kQueryBytes = kSlabs * kQuerySlab;
  static constexpr int kKeySlab = kCols * kSlabBytes;
  static constexpr int kKeyBytes = kSlabs * kKeySlab;
  static constexpr int kAlignment = 1024;  // of a swizzled tile
  static constexpr int kSharedBytes = kQueryBytes + 2 * kStages * kKeyBytes + kAlignment;
};

// One tile of queries of one head.
struct Work {
  int token;  // of the first query in the batch
  int count;  // queries
  int first;  // position of the first query
  int base;   // position of the first key of key tile 0
  int tiles;  // key tiles; the last holds position first + count - 1. 0: no more work
  int head;
  int table;  // where the row's block table begins
};

template <class S>
struct Barriers {
  uint64_t query_full;
  uint64_t query_empty;
  uint64_t key_full[S::kStages];
  uint64_t key_empty[S::kStages];
  uint64_t value_full[S::kStages];
  uint64_t value_empty[S::kStages];
  Work work;  // of the queries, for the consumers
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

// The block's work, in order, for one warp. To find out what a piece of work is takes four
// dependent loads, so 32 pieces are looked up at a time, one a lane.
template <class S>
class Schedule {
 public:
  __device__ __forceinline__ explicit Schedule(const PrefillAttention& args) : args_(args) {}

  __device__ __forceinline__ Work next() {
    const int lane = turn_ % 32;
    if (lane == 0) mine_ = look_up(turn_ + threadIdx.x % 32);
    ++turn_;
    Work work;
    work.token = __shfl_sync(0xffffffffu, mine_.token, lane);
    work.count = __shfl_sync(0xffffffffu, mine_.count, lane);
    work.first = __shfl_sync(0xffffffffu, mine_.first, lane);
    work.base = __shfl_sync(0xffffffffu, mine_.base, lane);
    work.tiles = __shfl_sync(0xffffffffu, mine_.tiles, lane);
    work.head = __shfl_sync(0xffffffffu, mine_.head, lane);
    work.table = __shfl_sync(0xffffffffu, mine_.table, lane);
    return work;
  }

 private:
  // Rounds run to and fro over the blocks, so that with heavy tiles first all get about the same.
  __device__ __forceinline__ Work look_up(int turn) const {
    const int place = turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    const int64_t index = int64_t{turn} * gridDim.x + place;
    Work work{};
    if (index >= int64_t{args_.tile_count} * args_.q_heads) return work;
    const PrefillTile tile = args_.tiles[index / args_.q_heads];
    const DeviceRow row = args_.rows[tile.row];
    work.head = index % args_.q_heads;
    work.table = args_.tables.table_begin[tile.row];
    work.token = row.token_begin + tile.begin;
    work.count = min(S::kRows, row.count - tile.begin);
    work.first = row.position + tile.begin;
    const int begin = args_.window > 0 ? max(0, work.first - args_.window + 1) : 0;
    const int align = min(args_.kv.block_size, S::kCols);
    work.base = begin / align * align;
    work.tiles = (work.first + work.count - work.base + S::kCols - 1) / S::kCols;
    return work;
  }

  const PrefillAttention& args_;
  Work mine_;
  int turn_ = 0;
};

// The producer warp of K, and that of V. A lane looks up one page of the tile and issues its
// copies.
template <class S>
__device__ __forceinline__ void produce_tiles(const PrefillAttention& args, const CUtensorMap* map,
                                              uint64_t* full, uint64_t* empty, uint32_t tiles) {
  const int lane = threadIdx.x % 32;
  const int block_size = args.kv.block_size;
  const int group = args.q_heads / args.kv.kv_heads;
  const int box_rows = min(block_size, S::kCols);
  const uint32_t box_bytes = box_rows * kSlabBytes;
  Place<S::kStages> place;
  Schedule<S> schedule(args);
  for (Work work = schedule.next(); work.tiles > 0; work = schedule.next()) {
    const int kv_head = work.head / group;
    for (int j = work.tiles - 1; j >= 0; --j) {
      const int begin = work.base + j * S::kCols;
      const int keys = min(S::kCols, work.first + work.count - begin);
      const int boxes = (keys + box_rows - 1) / box_rows;
      int row = 0;
      if (lane < boxes) {
        const int position = begin + lane * box_rows;
        const int block = args.tables.blocks[work.table + position / block_size];
        row = (block * args.kv.kv_heads + kv_head) * block_size + position % block_size;
      }
      const uint32_t barrier = shared_address(&full[place.index]);
      barrier_wait(shared_address(&empty[place.index]), place.parity ^ 1);
      if (lane == 0) barrier_arrive_expecting(barrier, boxes * box_bytes * S::kSlabs);
      __syncwarp();
      if (lane < boxes) {
        const uint32_t to = tiles + place.index * S::kKeyBytes + lane * box_bytes;
#pragma unroll
        for (int slab = 0; slab < S::kSlabs; ++slab) {
          copy_box(to + slab * S::kKeySlab, map, slab * 64, row, barrier);
        }
      }
      place.advance();
    }
  }
}

// Where 16 bytes of a query lie in their tile: chunks of eight columns are permuted within a row.
template <class S>
__device__ __forceinline__ uint32_t query_offset(int row, int chunk) {
  return chunk / 8 * S::kQuerySlab + row * kSlabBytes + (((chunk % 8) ^ (row % 8)) << 4);
}

// The two producer warps of queries, which also tell the consumers what to do.
template <class S>
__device__ __forceinline__ void produce_queries(const PrefillAttention& args, Barriers<S>& barriers,
                                                uint32_t q_tile) {
  constexpr int kChunks = S::kDim / 8;
  const int thread = threadIdx.x - (kGroupThreads - kQueryLoaders);
  const auto* q = static_cast<const Element*>(args.q);
  Schedule<S> schedule(args);
  for (uint32_t parity = 1;; parity ^= 1) {
    const Work work = schedule.next();
    barrier_wait(shared_address(&barriers.query_empty), parity);
    if (thread == 0) barriers.work = work;
    if (work.tiles > 0) {
      const auto* from = q + work.token * args.q_stride + int64_t{work.head} * args.kv.head_dim;
#pragma unroll 2
      for (int i = thread; i < S::kRows * kChunks; i += kQueryLoaders) {
        const int row = i / kChunks;
        const int chunk = i % kChunks;
        const bool valid = row < work.count && chunk * 8 < args.kv.head_dim;
        copy_16_async_or_zero(q_tile + query_offset<S>(row, chunk),
                              from + (valid ? row * args.q_stride + chunk * 8 : 0), valid);
      }
      asm volatile("cp.async.wait_all;" ::: "memory");
      if constexpr (!S::kQueriesInRegisters) fence_async_proxy();
    }
    barrier_arrive(shared_address(&barriers.query_full));
    if (work.tiles == 0) break;
  }
}

}  // namespace trireme::cuda::hopper
