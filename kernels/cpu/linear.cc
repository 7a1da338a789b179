#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/cpu/packing.h"

namespace trireme::cpu {
namespace {

// Activations of one chunk of tokens stay in the second-level cache while the weights pass by, and
// one K-chunk of a panel while the chunk's tiles do.
constexpr int64_t kActivationChunkBytes = 768 << 10;
constexpr int64_t kPanelChunkBytes = 96 << 10;
constexpr int64_t kMaxChunkRows = 256;
// Below this many activations, preparing them is cheaper than waking the threads.
constexpr int64_t kSerialElements = 32768;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tokens are cut into tiles of nearly equal size, none larger than the kernel's.
struct Tiles {
  int64_t tokens = 0;
  int64_t count = 0;
  Tiles(int64_t tokens, int tile_rows) : tokens(tokens), count(divide_up(tokens, tile_rows)) {}
  int64_t begin(int64_t tile) const { return tokens * tile / count; }
  int rows(int64_t tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }
};

int64_t activation_bytes(TileKind kind, int64_t cols) {
  if (kind == TileKind::kF32) return cols * 4;
  if (kind == TileKind::kBF16) return cols * 2;
  return cols / 32 * static_cast<int64_t>(sizeof(QuantizedBlock));
}

void grow(Buffer& buffer, size_t bytes) {
  if (buffer.size() < bytes) buffer = Buffer(bytes + bytes / 2);
}

int64_t panel_count(const Weight& weight) { return divide_up(weight.rows, weight.packing); }

}  // namespace

Weight pack_weight(ThreadPool& pool, const Ops& ops, const WeightSlice& slice,
                   WeightMemory& memory) {
  const QuantTraits& t = traits(slice.format);
  if (slice.rows < 0 || slice.cols < 0 || slice.cols % t.block_elements != 0) {
    fail(ErrorCode::kInvalidArgument, "{} weight [{}, {}]: columns are not whole blocks of {}",
         t.name, slice.rows, slice.cols, t.block_elements);
  }
  if (slice.col_begin < 0 || slice.col_count < 0 ||
      slice.col_begin + slice.col_count > slice.cols ||
      (is_plain(slice.format) && slice.col_count != slice.cols)) {
    fail(ErrorCode::kInvalidArgument, "{} weight [{}, {}]: columns {} + {} are not a part of it",
         t.name, slice.rows, slice.cols, slice.col_begin, slice.col_count);
  }
  if (!slice.order.empty() &&
      (slice.col_begin != 0 || slice.cols != static_cast<int64_t>(slice.order.size()))) {
    fail(ErrorCode::kInvalidArgument, "{} weight [{}, {}]: an order of {} columns", t.name,
         slice.rows, slice.cols, slice.order.size());
  }
  Weight weight;
  weight.order = slice.order;
  weight.format = slice.format;
  weight.rows = slice.rows;
  weight.cols = slice.cols;
  weight.col_begin = slice.col_begin;
  weight.col_count = slice.col_count;
  weight.packing = ops.linear(slice.format).panel_rows;
  const int64_t panels = panel_count(weight);
  const int64_t bytes = panel_bytes(slice.format, slice.cols, weight.packing);
  weight.data = memory.take(static_cast<size_t>(panels * bytes));
  // The split of run_thread(), so that a thread finds its panels in its own memory.
  const auto pack = [&](int thread) {
    const Range range = split_range(panels, thread, pool.size());
    Buffer scratch;
    for (int64_t p = range.begin; p < range.end; ++p) {
      std::byte* panel = weight.data.data() + p * bytes;
      pack_panel(slice, p * weight.packing, weight.packing, scratch, panel);
    }
  };
  if (panels * bytes < kSerialElements) {
    for (int thread = 0; thread < pool.size(); ++thread) pack(thread);
  } else {
    pool.run(std::ref(pack));
  }
  return weight;
}

void read_weight_row(const Ops& ops, const Weight& weight, int64_t row, Buffer& scratch,
                     float* out) {
  const int panel_rows = ops.linear(weight.format).panel_rows;
  assert(weight.packing == panel_rows && row >= 0 && row < weight.rows);
  const int64_t file_bytes = row_bytes(weight.format, weight.cols);
  grow(scratch, static_cast<size_t>(file_bytes + weight.cols * 4 + 64));
  auto* values = scratch.as<float>();
  std::byte* blocks = scratch.data() + weight.cols * 4;
  const int64_t panel = row / panel_rows;
  unpack_row(weight.data.data() + panel * panel_bytes(weight.format, weight.cols, panel_rows),
             weight.format, weight.cols, static_cast<int>(row % panel_rows), panel_rows, blocks);
  dequantize(weight.format, blocks, weight.cols, values);
  if (weight.order.empty()) {
    std::copy_n(values + weight.col_begin, weight.col_count, out);
  } else {
    for (size_t j = 0; j < weight.order.size(); ++j) {
      if (weight.order[j] >= 0) out[weight.order[j]] = values[j];
    }
  }
}

void Linear::run(MatrixView x, std::span<const LinearPart> parts) {
  if (x.rows == 0) return;
  // More parts than any layer has: take them in turns.
  for (; parts.size() > kMaxParts; parts = parts.subspan(kMaxParts)) {
    run(x, parts.first(kMaxParts));
  }
  prepare(x, parts);
  const auto body = [&](int thread) { run_thread(x, parts, thread); };
  pool_.run(std::ref(body));
}

void Linear::prepare(MatrixView x, std::span<const LinearPart> parts) {
  form_count_ = 0;
  size_t bytes = 0;
  int64_t most = 0;  // activations of a tile
  for (size_t i = 0; i < parts.size(); ++i) {
    const Weight& w = *parts[i].weight;
    const LinearKernel kernel = ops_.linear(w.format);
    const int64_t cols = packed_cols(w.format, w.cols);
    assert(w.empty() || w.packing == kernel.panel_rows);
    assert(x.cols == w.col_count && x.dtype == DType::kF32);
    most = std::max(most, cols * std::min<int64_t>(kernel.tile_rows, x.rows));
    int form = 0;
    while (form < form_count_ &&
           (forms_[form].kind != kernel.tile || forms_[form].tile_rows != kernel.tile_rows ||
            forms_[form].cols != cols || forms_[form].col_begin != w.col_begin ||
            !std::ranges::equal(forms_[form].order, w.order))) {
      ++form;
    }
    form_of_part_[i] = form;
    if (form < form_count_) continue;
    forms_[form_count_++] = {kernel.tile,
                             kernel.tile_rows,
                             cols,
                             w.col_begin,
                             activation_bytes(kernel.tile, cols),
                             nullptr,
                             bytes,
                             w.order};
    bytes += static_cast<size_t>((forms_[form].row_bytes * x.rows + 63) / 64 * 64);
  }
  grow(activations_, bytes);
  // Per thread: a chunk's sums, or a tile's rows as the weight has its columns.
  const int64_t floats = std::max(kMaxChunkRows * 32, most);
  const auto need = static_cast<size_t>(floats * 4 + 63) / 64 * 64;
  if (need > scratch_per_thread_) {
    scratch_per_thread_ = need;
    thread_scratch_ = Buffer(need * static_cast<size_t>(pool_.size()));
  }
  for (int f = 0; f < form_count_; ++f) {
    Prepared& form = forms_[f];
    form.data = activations_.data() + form.offset;
    if (form.kind == TileKind::kF32 && x.rows == 1 && form.cols == x.cols && form.order.empty()) {
      form.data = reinterpret_cast<const std::byte*>(x.f32());
      continue;
    }
    const Tiles tiles(x.rows, form.tile_rows);
    const auto fill = [&](int thread, int threads) {
      const Range range = split_range(tiles.count, thread, threads);
      auto* scratch = reinterpret_cast<float*>(thread_scratch_.data() +
                                               scratch_per_thread_ * static_cast<size_t>(thread));
      for (int64_t t = range.begin; t < range.end; ++t) {
        fill_tile(x, form, tiles.begin(t), tiles.rows(t), scratch);
      }
    };
    if (x.rows * form.cols <= kSerialElements || tiles.count == 1) {
      fill(0, 1);
    } else {
      const auto body = [&](int thread) { fill(thread, pool_.size()); };
      pool_.run(std::ref(body));
    }
  }
}

void Linear::fill_tile(MatrixView x, const Prepared& form, int64_t row_begin, int rows,
                       float* scratch) const {
  const float* from = x.f32(row_begin);
  int64_t stride = x.stride;
  if (form.cols != x.cols || !form.order.empty()) {
    for (int m = 0; m < rows; ++m) {
      arrange_row(x.f32(row_begin + m), x.cols, form, scratch + m * form.cols);
    }
    from = scratch;
    stride = form.cols;
  }
  std::byte* out = activations_.data() + form.offset + row_begin * form.row_bytes;
  switch (form.kind) {
    case TileKind::kF32:
      ops_.tile_f32(from, stride, rows, form.cols, reinterpret_cast<float*>(out));
      break;
    case TileKind::kBF16: ops_.tile_bf16(from, stride, rows, form.cols, out); break;
    case TileKind::kInt8:
      for (int m = 0; m < rows; ++m) {
        ops_.quantize(from + m * stride, form.cols / 32, reinterpret_cast<QuantizedBlock*>(out) + m,
                      rows);
      }
      break;
  }
}

// The columns of the weight that x lacks are zero.
void Linear::arrange_row(const float* x, int64_t cols, const Prepared& form, float* out) {
  std::fill_n(out, form.cols, 0.0f);
  if (form.order.empty()) {
    std::copy_n(x, cols, out + form.col_begin);
    return;
  }
  for (size_t k = 0; k < form.order.size(); ++k) {
    if (form.order[k] >= 0) out[k] = x[form.order[k]];
  }
}

void Linear::run_thread(MatrixView x, std::span<const LinearPart> parts, int thread) const {
  int64_t total = 0;
  for (const LinearPart& part : parts) total += static_cast<int64_t>(part.weight->data.size());
  const int64_t begin = total / pool_.size() * thread;
  const int64_t end = thread + 1 == pool_.size() ? total : total / pool_.size() * (thread + 1);
  auto* acc = reinterpret_cast<float*>(thread_scratch_.data() +
                                       scratch_per_thread_ * static_cast<size_t>(thread));
  int64_t offset = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Weight& w = *parts[i].weight;
    const auto size = static_cast<int64_t>(w.data.size());
    const int64_t panels = w.empty() ? 0 : panel_count(w);
    const int64_t bytes = panels == 0 ? 1 : std::max<int64_t>(1, size / panels);
    // A panel belongs to the thread in whose share it begins.
    const int64_t first = std::clamp(divide_up(begin - offset, bytes), int64_t{0}, panels);
    const int64_t last = std::clamp(divide_up(end - offset, bytes), int64_t{0}, panels);
    if (first < last) run_panels(parts[i], forms_[form_of_part_[i]], x.rows, first, last, acc);
    offset += size;
  }
}

void Linear::run_panels(const LinearPart& part, const Prepared& form, int64_t tokens,
                        int64_t panel_begin, int64_t panel_end, float* acc) const {
  const Weight& w = *part.weight;
  const LinearKernel kernel = ops_.linear(w.format);
  const PackedBlock packed = packed_block(w.format);
  const int64_t blocks = form.cols / packed.elements;
  const int64_t block_bytes = int64_t{packed.bytes} * kernel.panel_rows;
  const int64_t x_block_bytes = activation_bytes(form.kind, packed.elements);
  const Tiles tiles(tokens, kernel.tile_rows);
  const int64_t chunk_rows =
      std::clamp(kActivationChunkBytes / std::max<int64_t>(1, form.row_bytes), int64_t{1},
                 kMaxChunkRows - kernel.tile_rows);
  const int64_t chunk_tiles = divide_up(chunk_rows, kernel.tile_rows);
  for (int64_t tile0 = 0; tile0 < tiles.count; tile0 += chunk_tiles) {
    const int64_t tile1 = std::min(tile0 + chunk_tiles, tiles.count);
    const bool whole = tile1 - tile0 == 1 || kernel.panel_rows == 1;
    const int64_t k_chunk = whole ? blocks : std::max<int64_t>(1, kPanelChunkBytes / block_bytes);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const std::byte* weights = w.data.data() + panel * blocks * block_bytes;
      for (int64_t k = 0; k < blocks; k += k_chunk) {
        for (int64_t tile = tile0; tile < tile1; ++tile) {
          const int64_t row = tiles.begin(tile);
          const int rows = tiles.rows(tile);
          kernel.run({weights + k * block_bytes,
                      form.data + row * form.row_bytes + k * x_block_bytes * rows, rows,
                      std::min(k_chunk, blocks - k), k == 0,
                      acc + (row - tiles.begin(tile0)) * kernel.panel_rows, fetches_ahead_});
        }
      }
      const int64_t column = panel * kernel.panel_rows;
      const int64_t columns = std::min<int64_t>(kernel.panel_rows, w.rows - column);
      for (int64_t row = tiles.begin(tile0); row < tiles.begin(tile1); ++row) {
        const float* sums = acc + (row - tiles.begin(tile0)) * kernel.panel_rows;
        float* out = part.out.f32(row) + column;
        for (int64_t i = 0; i < columns; ++i) {
          float value = sums[i];
          if (part.bias != nullptr) value += part.bias[column + i];
          out[i] = part.accumulate ? out[i] + value : value;
        }
      }
    }
  }
}

}  // namespace trireme::cpu
