// Prefill attention on mma.sync: online softmax over tiles of the paged KV, gathered row by row
// with cp.async, so that any block size and head size will do. A warp holds 16 queries; logits and
// the output stay in its registers. Algorithm: FlashAttention-2 (Dao, 2023, arXiv:2307.08691).
#include <algorithm>

#include "kernels/cuda/check.h"
#include "kernels/cuda/prefill_attention.cuh"
#include "kernels/cuda/prefill_attention_math.cuh"

namespace trireme::cuda {
namespace {

// kDim: the head size, rounded up unless kExact; kRows queries and kCols keys a tile.
template <int kDim_, bool kExact_, int kRows_, int kCols_>
struct Shape {
  static constexpr int kDim = kDim_;
  static constexpr bool kExact = kExact_;
  static constexpr int kRows = kRows_;
  static constexpr int kCols = kCols_;
  static constexpr int kWarps = kRows / 16;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kStageBytes = kCols * kRowBytes;  // of K or of V
  static constexpr int kSharedBytes = kRows * kRowBytes + 4 * kStageBytes;
  static constexpr bool kQueriesInRegisters = kDim <= 128;
  static_assert(kPrefillTileRows % kRows == 0 && kCols % 16 == 0 && kDim % 64 == 0);
};

// Byte offset of 16-byte chunk `chunk` of row `row`: chunks are permuted so that eight rows of one
// column fall into different banks.
template <class S>
__device__ __forceinline__ uint32_t tile_offset(int row, int chunk) {
  return row * S::kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Positions [base, base + kCols) of one KV head into shared memory; zeros from `end` on and in the
// padding of the head.
template <class S>
__device__ __forceinline__ void load_keys_values(const PrefillAttention& args, const int32_t* table,
                                                 int kv_head, int base, int end, uint32_t k_to,
                                                 uint32_t v_to) {
  constexpr int kChunks = S::kDim / 8;
  const auto* k = static_cast<const Element*>(args.kv.k);
  const auto* v = static_cast<const Element*>(args.kv.v);
  const unsigned block_size = args.kv.block_size;
  const int shift = (block_size & (block_size - 1)) == 0 ? __ffs(block_size) - 1 : -1;
  for (int i = threadIdx.x; i < S::kCols * kChunks; i += S::kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const bool valid = base + row < end && chunk * 8 < args.kv.head_dim;
    int64_t from = 0;
    if (valid) {
      const unsigned position = base + row;
      const unsigned entry = shift >= 0 ? position >> shift : position / block_size;
      const int64_t block = table[entry];
      from = ((block * args.kv.kv_heads + kv_head) * block_size + (position - entry * block_size)) *
                 args.kv.head_dim +
             chunk * 8;
    }
    const uint32_t offset = tile_offset<S>(row, chunk);
    copy_16_async_or_zero(k_to + offset, k + from, valid);
    copy_16_async_or_zero(v_to + offset, v + from, valid);
  }
}

template <class S>
__device__ __forceinline__ void load_queries(const PrefillAttention& args, int64_t first_token,
                                             int count, int head, uint32_t to) {
  constexpr int kChunks = S::kDim / 8;
  const auto* q = static_cast<const Element*>(args.q);
  for (int i = threadIdx.x; i < S::kRows * kChunks; i += S::kThreads) {
    const int row = i / kChunks;
    const int chunk = i % kChunks;
    const bool valid = row < count && chunk * 8 < args.kv.head_dim;
    const int64_t from =
        (first_token + row) * args.q_stride + int64_t{head} * args.kv.head_dim + chunk * 8;
    copy_16_async_or_zero(to + tile_offset<S>(row, chunk), q + (valid ? from : 0), valid);
  }
}

// Addresses for ldmatrix of one 16 x 16 block: lanes 0-7 the first 8 x 8 matrix's rows, and so on.
// Rows run first over the block (queries: rows then columns; V: tokens then dimensions).
template <class S>
__device__ __forceinline__ uint32_t rows_first(uint32_t tile, int row, int chunk, int lane) {
  return tile + tile_offset<S>(row + (lane & 15), chunk + (lane >> 4));
}
template <class S>
__device__ __forceinline__ uint32_t columns_first(uint32_t tile, int row, int chunk, int lane) {
  return tile + tile_offset<S>(row + (lane & 7) + ((lane >> 4) << 3), chunk + ((lane >> 3) & 1));
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    prefill_mma_kernel(const __grid_constant__ PrefillAttention args) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int kSplits = kPrefillTileRows / S::kRows;
  constexpr int kColBlocks = S::kCols / 8;
  constexpr int kDimBlocks = S::kDim / 8;

  const int head = blockIdx.x % args.q_heads;
  const int item = blockIdx.x / args.q_heads;
  const PrefillTile tile = args.tiles[item / kSplits];
  const DeviceRow row = args.rows[tile.row];
  const int begin = tile.begin + item % kSplits * S::kRows;
  if (begin >= row.count) return;
  const int count = min(S::kRows, row.count - begin);
  const int first = row.position + begin;  // position of the first query
  const int kv_end = first + count;
  const int kv_begin = args.window > 0 ? max(0, first - args.window + 1) : 0;
  const int kv_tiles = (kv_end - kv_begin + S::kCols - 1) / S::kCols;
  const int kv_head = head / (args.q_heads / args.kv.kv_heads);
  const int32_t* table = args.tables.blocks + args.tables.table_begin[tile.row];
  const int64_t first_token = int64_t{row.token_begin} + begin;

  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 * 16;
  const uint32_t q_tile = shared_address(shared);
  const uint32_t k_tile = q_tile + S::kRows * S::kRowBytes;
  const uint32_t v_tile = k_tile + 2 * S::kStageBytes;

  load_queries<S>(args, first_token, count, head, q_tile);
  load_keys_values<S>(args, table, kv_head, kv_begin, kv_end, k_tile, v_tile);
  end_copy_group();

  const int dims = args.kv.head_dim;
  const bool capping = args.softcap > 0.0f;
  const float doubled = 2.0f * kLog2E * args.scale / args.softcap;
  const float cap = args.softcap / args.scale;
  const float scale = args.scale * kLog2E;
  // Positions of this lane's two queries, eight apart.
  const int query = first + warp_row + lane / 4;

  uint32_t q_fragments[S::kQueriesInRegisters ? S::kDim / 16 : 1][4];
  float out[kDimBlocks][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {0.0f, 0.0f};  // over this lane's columns

  for (int j = 0; j < kv_tiles; ++j) {
    const int base = kv_begin + j * S::kCols;
    const uint32_t stage = (j & 1) * S::kStageBytes;
    wait_for_copy_groups<0>();
    __syncthreads();  // tile j is here, and all warps are done with tile j - 1
    if (j + 1 < kv_tiles) {
      const uint32_t next = S::kStageBytes - stage;
      load_keys_values<S>(args, table, kv_head, base + S::kCols, kv_end, k_tile + next,
                          v_tile + next);
      end_copy_group();
    }
    if constexpr (S::kQueriesInRegisters) {
      if (j == 0) {
#pragma unroll
        for (int d = 0; d < S::kDim / 16; ++d) {
          load_matrices(q_fragments[d], rows_first<S>(q_tile, warp_row, d * 2, lane));
        }
      }
    }

    float logits[kColBlocks][4] = {};
#pragma unroll
    for (int d = 0; d < S::kDim / 16; ++d) {
      if (!S::kExact && d * 16 >= dims) break;
      uint32_t* q = q_fragments[S::kQueriesInRegisters ? d : 0];
      uint32_t a[4];
      if constexpr (!S::kQueriesInRegisters) {
        load_matrices(a, rows_first<S>(q_tile, warp_row, d * 2, lane));
      } else {
        a[0] = q[0], a[1] = q[1], a[2] = q[2], a[3] = q[3];
      }
#pragma unroll
      for (int n = 0; n < kColBlocks; n += 2) {
        uint32_t b[4];
        load_matrices(b, columns_first<S>(k_tile + stage, n * 8, d * 2, lane));
        multiply_add(logits[n], a, b[0], b[1]);
        multiply_add(logits[n + 1], a, b[2], b[3]);
      }
    }

    if (capping) {
#pragma unroll
      for (int n = 0; n < kColBlocks; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) logits[n][e] = soft_capped(logits[n][e] * doubled, cap);
      }
    }
    const bool edge = base + S::kCols > first + warp_row + 1 ||
                      (args.window > 0 && base <= first + warp_row + 15 - args.window);
    if (edge) {
#pragma unroll
      for (int n = 0; n < kColBlocks; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int position = base + n * 8 + lane % 4 * 2 + (e & 1);
          const int at = query + (e >> 1) * 8;
          const bool seen = position <= at && position < kv_end &&
                            (args.window <= 0 || position > at - args.window);
          if (!seen) logits[n][e] = -INFINITY;
        }
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float tile_largest = largest[half];
#pragma unroll
      for (int n = 0; n < kColBlocks; ++n) {
        tile_largest = fmaxf(tile_largest, fmaxf(logits[n][2 * half], logits[n][2 * half + 1]));
      }
      tile_largest = quad_max(tile_largest);
      // A query that has seen nothing yet keeps zeros without making NaNs.
      const float anchor = tile_largest == -INFINITY ? 0.0f : tile_largest * scale;
      const float correction = exp2_fast(fmaf(largest[half], scale, -anchor));
      largest[half] = tile_largest;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kColBlocks; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          logits[n][e] = exp2_fast(fmaf(logits[n][e], scale, -anchor));
          sum += logits[n][e];
        }
      }
      total[half] = total[half] * correction + sum;
#pragma unroll
      for (int d = 0; d < kDimBlocks; ++d) {
        out[d][2 * half] *= correction;
        out[d][2 * half + 1] *= correction;
      }
    }

#pragma unroll
    for (int n = 0; n < kColBlocks; n += 2) {
      const uint32_t a[4] = {pack(logits[n][0], logits[n][1]), pack(logits[n][2], logits[n][3]),
                             pack(logits[n + 1][0], logits[n + 1][1]),
                             pack(logits[n + 1][2], logits[n + 1][3])};
#pragma unroll
      for (int d = 0; d < kDimBlocks; d += 2) {
        if (!S::kExact && d * 8 >= dims) break;
        uint32_t b[4];
        load_matrices_transposed(b, rows_first<S>(v_tile + stage, n * 8, d, lane));
        multiply_add(out[d], a, b[0], b[1]);
        multiply_add(out[d + 1], a, b[2], b[3]);
      }
    }
  }

  auto* to = static_cast<Element*>(args.out);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = warp_row + lane / 4 + half * 8;
    const float sum = quad_sum(total[half]);
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    if (at >= count) continue;
    const int64_t offset = ((first_token + at) * args.q_heads + head) * int64_t{dims};
#pragma unroll
    for (int d = 0; d < kDimBlocks; ++d) {
      const int column = d * 8 + lane % 4 * 2;
      if (column >= dims) continue;
      *reinterpret_cast<uint32_t*>(to + offset + column) =
          pack(out[d][2 * half] * inverse, out[d][2 * half + 1] * inverse);
    }
  }
}

template <class S>
void launch(const PrefillAttention& args, cudaStream_t stream) {
  TRIREME_CUDA(cudaFuncSetAttribute(prefill_mma_kernel<S>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes));
  const unsigned items = static_cast<unsigned>(args.tile_count) * (kPrefillTileRows / S::kRows);
  prefill_mma_kernel<S>
      <<<items* static_cast<unsigned>(args.q_heads), S::kThreads, S::kSharedBytes, stream>>>(args);
  TRIREME_CUDA(cudaGetLastError());
}

}  // namespace

void launch_prefill_mma(const PrefillAttention& args, cudaStream_t stream) {
  const int dims = args.kv.head_dim;
  if (dims == 64) {
    launch<Shape<64, true, 128, 64>>(args, stream);
  } else if (dims < 64) {
    launch<Shape<64, false, 128, 64>>(args, stream);
  } else if (dims == 128) {
    launch<Shape<128, true, 128, 64>>(args, stream);
  } else if (dims < 128) {
    launch<Shape<128, false, 128, 64>>(args, stream);
  } else if (dims == 256) {
    launch<Shape<256, true, 64, 32>>(args, stream);
  } else {
    launch<Shape<256, false, 64, 32>>(args, stream);
  }
}

}  // namespace trireme::cuda
