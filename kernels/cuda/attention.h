// Paged attention on the GPU. Queries are elements [tokens, q_heads * head_dim]; positions and
// block tables come from the device batch; sums and softmax are float32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device_batch.h"

namespace trireme::cuda {

// What happens to q and k before they are used: optional RMSNorm per head (Qwen3), then rotary
// embedding in the half-split convention on the leading rotary_dim dimensions.
struct HeadPrepare {
  const float* q_norm = nullptr;  // [head_dim], device; null: none
  const float* k_norm = nullptr;  // [head_dim]
  float norm_eps = 0.0f;
  const float* inv_freq = nullptr;  // [rotary_dim / 2], device
  int rotary_dim = 0;
  float magnitude = 1.0f;
};

// One part of one decode row's context, made on the host by plan_decode().
struct alignas(16) DecodeItem {
  int32_t begin = 0;  // positions [begin, end) of the context; the newest token's is end - 1 of the
  int32_t end = 0;    //   last part
  int32_t table = -1;  // tables.table_begin[row], where the caller fills it in: saves a lookup
  int32_t row = 0;
  int32_t part = 0;  // of `parts`
  int32_t parts = 0;
  // A span is what one thread block does for one KV head; spans are of equal work. The first items
  // are those that start spans, and `next` leads through a span's others; -1: its last.
  int32_t next = -1;
  int32_t starts = 0;
  int32_t slot = 0;      // of this part's result in the workspace; a row's slots are consecutive
  int32_t position = 0;  // the row's DeviceRow
  int32_t token = 0;
  int32_t unused = 0;
};

struct DecodeAttention {
  // q, k, v of the new tokens as the QKV product left them: columns of one or of several matrices.
  const void* q = nullptr;  // elements [tokens, q_heads * head_dim], row stride q_stride elements
  const void* k = nullptr;  // elements [tokens, kv_heads * head_dim], row stride kv_stride
  const void* v = nullptr;
  int64_t q_stride = 0;
  int64_t kv_stride = 0;
  HeadPrepare prepare;
  int q_heads = 0;  // a multiple of kv.kv_heads
  float scale = 0.0f;
  float softcap = 0.0f;             // 0: off
  const DeviceRow* rows = nullptr;  // not read: items hold what is needed of them
  DeviceTables tables;
  DeviceKv kv;
  const DecodeItem* items = nullptr;    // [max_items], device; what is behind the last is not used
  const int32_t* item_count = nullptr;  // device: how many of them
  int32_t max_items = 0;                // the launch does not depend on *item_count
  // Items, tables and the cached KV of earlier tokens were complete before the first kernel of this
  // chain of dependent launches began (a copy or another full dependency stands at the step's
  // head): they are then requested before the wait for the previous kernel.
  bool early_context = false;
  void* workspace = nullptr;  // decode_workspace_bytes(), zeroed once at allocation
  void* out = nullptr;        // elements [tokens, q_heads * head_dim], contiguous
};

// Splits the rows' contexts into parts of about equal work so that all multiprocessors are busy.
// rows[i].count must be 1; `window` as in AttentionParams. At most `max_items` items, and always
// enough room for one a row (max_items >= rows). Parts are cut at multiples of 64 positions.
void plan_decode(std::span<const DeviceRow> rows, int window, int block_size, int kv_heads,
                 int multiprocessors, int32_t max_items, std::vector<DecodeItem>& items);

// Room for every plan of up to `rows` rows: with less, plan_decode() splits less.
int32_t decode_max_items(int32_t rows, int kv_heads, int multiprocessors);

// Launches that share a workspace must agree on these (its counters are zero between launches).
size_t decode_workspace_bytes(int32_t max_items, int q_heads, int head_dim);

// Whether the kernels below are built for this head size, with so many query heads per KV head.
// Decode: any even head_dim <= 256, groups of 1 to 16, any block size; 64, 80, 96, 128 and 256 run
// at memory speed.
bool decode_attention_supports(int head_dim, int group);
bool prefill_attention_supports(int head_dim, int block_size);

// Norm and rope on q and k, KV write and attention of decode rows, in one launch (grid fixed by
// max_items and kv_heads). Replayable in a graph. Launched with programmatic dependent launch.
// A row's result depends on its own context and on how the plan split it (rounding of the merge),
// not on what other rows hold. Slots of the cache from the newest token's on are not read. Rows of
// the batch without an item are left alone, in `out` too.
void launch_decode_attention(const DecodeAttention& args, cudaStream_t stream);

// Norm and rope on q (in place) and k, and the KV write, for tokens of any rows. Token t of row r
// is at position rows[r].position + t - rows[r].token_begin. Any even head_dim and rotary_dim;
// 16-byte accesses where pointers, strides and head_dim / 16, rotary_dim / 16 allow. Launched with
// programmatic dependent launch.
struct PrepareQkv {
  void* q = nullptr;  // elements, in and out
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t q_stride = 0;
  int64_t kv_stride = 0;
  HeadPrepare prepare;
  int q_heads = 0;
  const DeviceRow* rows = nullptr;
  const int32_t* token_rows = nullptr;  // [tokens]: the row of each token; -1: padding, skipped
  int32_t tokens = 0;
  DeviceTables tables;
  DeviceKv kv;
};
void launch_prepare_qkv(const PrepareQkv& args, cudaStream_t stream);

// A tile of queries of one row, made on the host by plan_prefill(): heavy tiles first.
struct PrefillTile {
  int32_t row = 0;
  int32_t begin = 0;  // first token of the tile within its row
};

struct PrefillAttention {
  const void* q = nullptr;  // elements, after launch_prepare_qkv
  int64_t q_stride = 0;
  int q_heads = 0;
  float scale = 0.0f;
  float softcap = 0.0f;
  int window = 0;
  const DeviceRow* rows = nullptr;
  DeviceTables tables;
  DeviceKv kv;                         // holds the new tokens too
  const PrefillTile* tiles = nullptr;  // device
  int32_t tile_count = 0;              // known on the host: prefill is not captured
  void* out = nullptr;                 // elements [tokens, q_heads * head_dim], contiguous
};

void plan_prefill(std::span<const DeviceRow> rows, int head_dim, std::vector<PrefillTile>& tiles);

// Causal attention of rows of any count over the paged KV, on tensor cores.
void launch_prefill_attention(const PrefillAttention& args, cudaStream_t stream);

}  // namespace trireme::cuda
