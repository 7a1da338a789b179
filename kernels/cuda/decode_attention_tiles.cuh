// The shared memory of the decode attention kernel, and how KV gets there.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace trireme::cuda::decode {

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
  unsigned* arrived = nullptr;        // [2][max_items][kv_heads], see finish_item; 0 at rest
};

// Shared memory, in this order. kDim: head_dim, or the next size there is a kernel for.
template <int kDim>
struct Layout {
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kTileBytes = kTile * kRowBytes;  // of K, or of V
  // Two blocks of up to 128 dimensions fit a multiprocessor of 228 KB; one of 256, of 164 KB.
  static constexpr int kStages = kDim <= 64    ? 6
                                 : kDim <= 80  ? 5
                                 : kDim <= 96  ? 4
                                 : kDim <= 128 ? 3
                                               : 2;
  static constexpr __host__ __device__ int merge_slots(bool wide) {
    return wide || kDim > 128 ? 1 : 2;
  }
  static constexpr int kRing = 0;  // [warp][stage] K tile, V tile
  static constexpr int kQuery = kRing + kWarps * kStages * 2 * kTileBytes;  // tile of queries
  static constexpr int kNewest = kQuery + kTileBytes;     // the newest token's k, then v
  static constexpr int kNorm = kNewest + 2 * kRowBytes;   // float [kDim] for q, then for k
  static constexpr int kRotation = kNorm + 2 * kDim * 4;  // float2 [kDim / 2]
  static constexpr int kWork = kRotation + kDim / 2 * 8;  // Work [3]
  static constexpr int kLast = kWork + 3 * 64;            // int: this block merges the parts
  static constexpr int kMerge = kLast + 16;               // [merge_slots] results of a warp
  // float4 a lane; rows 8 to 15 only count where the group is larger than 8.
  static constexpr __host__ __device__ int merge_vectors(bool wide) {
    return (wide ? kDim / 8 : kDim / 16) + 1;
  }
  static constexpr int bytes(bool wide) {
    return kMerge + merge_slots(wide) * merge_vectors(wide) * 32 * 16;
  }
};

// The model's head size; known to the compiler where the kernel is made for it.
template <int kDim, bool kExact>
__device__ inline int head_dim_of(const Params& p) {
  if constexpr (kExact) return kDim;
  return p.a.kv.head_dim;
}

// Where 16-byte unit `unit` of row `row` lies in a tile: rotated so that the same unit of 8
// consecutive rows falls into 8 different groups of banks.
template <int kDim>
__device__ inline int unit_offset(int row, int unit) {
  constexpr int kUnits = kDim / 8;
  constexpr int kPower = (kUnits & -kUnits) > 8 ? 8 : (kUnits & -kUnits);
  return row * kDim * 2 + (unit ^ ((row / (8 / kPower)) & (kPower - 1))) * 16;
}

// Whether there is a `span`-th span.
__device__ inline bool starts_span(const Params& p, int span, int item_count) {
  if (span >= p.a.max_items) return false;
  return (p.a.items[span].starts != 0) & (span < item_count);
}

// The tiles of one warp in order, over all items of all spans of its block, as copies into its
// ring.
template <int kDim, bool kExact>
class TileStream {
 public:
  __device__ TileStream(const Params& p, uint32_t ring, int warp, int lane, int item_count)
      : p_(p),
        ring_(ring),
        warp_(warp),
        lane_(lane),
        item_count_(item_count),
        unit_(static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x)) {}

  // Requests the next tile into `stage`, and goes on to the one after it; the first call only goes
  // to the first. Always commits a group.
  __device__ void request(int stage) {
    if (ready_) copy(ring_ + stage * 2 * L::kTileBytes);
    end_copy_group();
    if (!done_) go_on();
  }

 private:
  using L = Layout<kDim>;

  __device__ void open_span() {
    unit_ += gridDim.x;
    const int span = unit_ / p_.a.kv.kv_heads;
    done_ = !starts_span(p_, span, item_count_);
    if (done_) return;
    head_ = unit_ - span * p_.a.kv.kv_heads;
    next_ = span;
    look_ahead(span);
  }

  // Reads an item before it is its turn, so that nobody waits for it then.
  __device__ void look_ahead(int index) {
    const auto* item = reinterpret_cast<const int4*>(p_.a.items + index);
    place_ahead_ = item[0];
    parts_ahead_ = item[1];
  }

  __device__ void open_item() {
    // As DecodeItem begins.
    const int4 place = place_ahead_, parts = parts_ahead_;
    const int table = place.z >= 0 ? place.z : p_.a.tables.table_begin[place.w];
    table_ = p_.a.tables.blocks + table;
    begin_ = place.x;
    end_ = place.y - (parts.x == parts.y - 1 ? 1 : 0);  // the newest is not in the cache yet
    tile_ = place.x / kTile + warp_;
    tile_end_ = (place.y - 1) / kTile + 1;
    next_ = parts.z;
  }

  // To the next tile there is, and its lookup in the block table, so that the entry is there when
  // the tile is requested.
  __device__ void go_on() {
    tile_ += kWarps;
    if (tile_ >= tile_end_) {
      bool read_ahead = next_ >= 0;
      do {
        if (next_ < 0) {
          open_span();
          if (done_) {
            ready_ = false;
            return;
          }
        } else if (!read_ahead) {
          look_ahead(next_);
        }
        open_item();
        read_ahead = false;
      } while (tile_ >= tile_end_);
      ready_ = true;
      if (next_ >= 0) look_ahead(next_);
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
    const auto* k = static_cast<const Element*>(kv.k);
    const auto* v = static_cast<const Element*>(kv.v);
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
        copy_16_of_128_async(at, k + offset, from >= 0);
        copy_16_of_128_async(at + L::kTileBytes, v + offset, from >= 0);
      }
    } else {
      const int row = lane_ & (kTile - 1);
      const int64_t offset = mine < 0 ? 0 : int64_t{mine} * kv.head_dim;
      if (kv.head_dim % 8 == 0) {
        for (int unit = lane_ / kTile; unit < kv.head_dim / 8; unit += 2) {
          const uint32_t at = to + unit_offset<kDim>(row, unit);
          copy_16_of_128_async(at, k + offset + unit * 8, mine >= 0);
          copy_16_of_128_async(at + L::kTileBytes, v + offset + unit * 8, mine >= 0);
        }
      } else {
        for (int word = lane_ / kTile; word < kv.head_dim / 2; word += 2) {
          const uint32_t at = to + unit_offset<kDim>(row, word / 4) + word % 4 * 4;
          copy_4_async(at, k + offset + word * 2, mine >= 0);
          copy_4_async(at + L::kTileBytes, v + offset + word * 2, mine >= 0);
        }
      }
    }
  }

  const Params& p_;
  const uint32_t ring_;
  const int warp_, lane_, item_count_;
  int unit_;  // span * kv_heads + head
  bool ready_ = false, done_ = false;
  int head_ = 0, next_ = -1;
  int4 place_ahead_ = {}, parts_ahead_ = {};
  const int32_t* table_ = nullptr;
  int begin_ = 0, end_ = 0, tile_ = 0, tile_end_ = 0;
  int slot_ = -1, block_ = 0;
};

}  // namespace trireme::cuda::decode
