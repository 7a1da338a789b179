// The serial kernels of one instruction set, as a table. CpuBackend splits work over threads and
// calls these. The files of cpu/simd/ are compiled with their own machine flags: they include only
// this header and the intrinsics, and everything in them but their table has internal linkage, so
// that no inline function compiled for AVX-512 can be linked into the rest of the program.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "kernels/quant.h"

namespace trireme::cpu {

// How `linear` wants its activations. A tile is `rows` <= tile_rows consecutive tokens.
enum class TileKind : uint8_t {
  kF32,   // [k][rows] float
  kBF16,  // [k/2][rows][2] bf16
  kInt8,  // [k/32][rows] QuantizedBlock
};

// 32 activations as integers of 15 bits: x = scale * (128 high + low), high in [-127, 127],
// low in [-64, 63]; the two planes are what 8-bit dot products take.
struct QuantizedBlock {
  int8_t high[32];
  int8_t low[32];
  float scale;
  float sum;            // of the 32 quantized x
  int32_t half_sum[2];  // of (128 high + low), elements 0..15 and 16..31
};
static_assert(sizeof(QuantizedBlock) == 80);

// acc[rows][panel_rows] (+)= x panelᵀ over `blocks` consecutive packed blocks (packing.h).
struct LinearTile {
  const std::byte* panel = nullptr;
  const std::byte* x = nullptr;
  int rows = 0;
  int64_t blocks = 0;
  bool first = true;  // overwrite acc
  float* acc = nullptr;
  bool fetches_ahead = true;  // for one row of 8-bit products (isa.h); others always do
};

// So far ahead of their use kernels fetch weights: a panel is one stream, and hardware prefetchers
// stop at pages.
constexpr int64_t kPrefetchBytes = 4096;

// A panel holds panel_rows rows of the weight, interleaved (see packing.h). A row's result is one
// chain of operations in k order: it does not depend on `rows`.
struct LinearKernel {
  int panel_rows = 0;
  int tile_rows = 0;
  TileKind tile = TileKind::kF32;
  void (*run)(const LinearTile&) = nullptr;
};

// Query rows that share one KV head, against positions [begin, end) of one sequence, all within one
// partition. Rows are ordered by position.
struct AttentionTile {
  const float* q = nullptr;  // [rows][head_dim], scaled
  const int32_t* row_position = nullptr;
  int rows = 0;
  int head_dim = 0;
  int window = 0;
  float softcap = 0.0f;
  const std::byte* k = nullptr;  // of this KV head in block 0
  const std::byte* v = nullptr;
  DType dtype = DType::kF32;
  int64_t block_stride = 0;  // bytes between blocks
  int block_size = 0;
  const int32_t* blocks = nullptr;
  int begin = 0;
  int end = 0;
  int known = 0;             // positions before it may be fetched ahead of their turn
  float* scratch = nullptr;  // attention_scratch(head_dim) floats
  // Out: the softmax's running maximum and sum, and the unnormalized output [rows][padded dim].
  float* max = nullptr;
  float* sum = nullptr;
  float* out = nullptr;
};

constexpr int kAttentionRows = 32;        // most rows of an AttentionTile
constexpr int kAttentionStep = 64;        // positions per softmax update
constexpr int kAttentionPartition = 512;  // positions per independently computed part
constexpr int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }
// Transposed K, V, and the scores.
constexpr int attention_scratch(int head_dim) {
  return (2 * padded_dim(head_dim) + kAttentionRows) * kAttentionStep;
}

struct Ops {
  const char* name = nullptr;
  // One row of `count` floats each.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t count, float* out);
  void (*add)(float* x, const float* delta, int64_t count);
  void (*silu_mul)(const float* gate, const float* up, int64_t count, float* out);
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t count, float* out);
  // Rotates pairs (i, i + half) of x by cos[i], sin[i].
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t half);
  void (*convert)(const float* x, int64_t count, DType dtype, void* out);
  // Blocks k of `count` tokens' worth: x is already padded to whole blocks.
  // out[block * out_stride], block < blocks.
  void (*quantize)(const float* x, int64_t blocks, QuantizedBlock* out, int64_t out_stride);
  // x[rows][stride] as a tile of kF32, and of kBF16 (`cols` even; nullptr: none is asked for).
  void (*tile_f32)(const float* x, int64_t stride, int rows, int64_t cols, float* out);
  void (*tile_bf16)(const float* x, int64_t stride, int rows, int64_t cols, std::byte* out);
  LinearKernel (*linear)(QuantFormat format);
  // nullptr: paged attention runs in its scalar form.
  void (*attend)(const AttentionTile& tile);
  // out[i] = out[i] * scale + x[i] * x_scale; out[i] *= scale when x is nullptr.
  void (*blend)(float* out, float scale, const float* x, float x_scale, int64_t count);
  // Measurements (kernels/limits.h).
  uint64_t (*read)(const std::byte* data, int64_t bytes);
  double (*flops)(int64_t repeats, TileKind tile);  // of the products that take such tiles
};

const Ops& reference_ops();
const Ops& avx2_ops();
const Ops& avx512_ops();
const Ops& avx512_bf16_ops();

}  // namespace trireme::cpu
