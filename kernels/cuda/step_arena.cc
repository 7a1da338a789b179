#include "kernels/cuda/step_arena.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/elementwise.h"

namespace trireme::cuda {
namespace {

constexpr size_t kAlignment = 256;
// A step of up to so many tokens and block table entries never moves the arrays.
constexpr size_t kFirstTokens = 8192;
constexpr size_t kFirstBlocks = size_t{1} << 16;
constexpr size_t kGroupArrays = 4;
// Recorded steps have at most so many rows more than the step's own (CudaBackend::padded_rows).
constexpr size_t kPadding = 32;

size_t align(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

StepArena::StepArena(cudaStream_t stream, int multiprocessors)
    : stream_(stream), multiprocessors_(multiprocessors), arrays_(kFixedSections) {
  for (Staging& staging : staging_) {
    TRIREME_CUDA(cudaEventCreateWithFlags(&staging.done, cudaEventDisableTiming));
  }
}

StepArena::~StepArena() {
  cudaStreamSynchronize(stream_);
  for (Staging& staging : staging_) {
    cudaEventDestroy(staging.done);
    cudaFreeHost(staging.data);
  }
  for (std::byte* memory : outgrown_host_) cudaFreeHost(memory);
  for (std::byte* memory : outgrown_) cudaFree(memory);
  cudaFree(device_);
}

template <typename T>
T* StepArena::stage(size_t array, size_t count) {
  Array& one = arrays_[array];
  one.used = count * sizeof(T);
  one.values.resize(std::max(one.values.size(), one.used));
  return reinterpret_cast<T*>(one.values.data());
}

bool StepArena::has_tokens(std::span<const int32_t> tokens) const {
  return !tokens.empty() && tokens.data() == inputs_.tokens.data() &&
         tokens.size() == inputs_.tokens.size();
}
bool StepArena::has_logit_tokens(std::span<const int32_t> tokens) const {
  return !tokens.empty() && tokens.data() == inputs_.logit_tokens.data() &&
         tokens.size() == inputs_.logit_tokens.size();
}
int StepArena::group_of(std::span<const AttentionRow> rows) const {
  for (size_t g = 0; g < inputs_.groups.size(); ++g) {
    if (inputs_.groups[g].data() == rows.data()) return static_cast<int>(g);
  }
  return -1;
}

StepGroup StepArena::group(int index) const {
  const size_t first = kFixedSections + static_cast<size_t>(index) * kGroupArrays;
  const auto address = [&](size_t array) { return device_ + arrays_[first + array].offset; };
  StepGroup group;
  group.tables.table_begin = reinterpret_cast<const int32_t*>(address(0));
  group.items = reinterpret_cast<const DecodeItem*>(address(1));
  group.item_count = reinterpret_cast<const int32_t*>(address(2));
  group.tables.blocks = reinterpret_cast<const int32_t*>(address(3));
  group.max_items = kMaxItems;
  return group;
}

bool StepArena::fill(const StepInputs& inputs, int kv_heads, int block_size, int head_dim) {
  inputs_ = inputs;
  arrays_.resize(kFixedSections + inputs.groups.size() * kGroupArrays);
  const auto index = [](Section section) { return static_cast<size_t>(section); };
  const std::span<const AttentionRow> rows =
      inputs.groups.empty() ? std::span<const AttentionRow>() : inputs.groups[0];
  int32_t tokens = static_cast<int32_t>(inputs.tokens.size());
  for (const AttentionRow& row : rows) tokens = std::max(tokens, row.token_begin + row.count);
  token_count_ = tokens;
  // Beyond the step's own tokens a recorded step reads zeros.
  const auto padded = static_cast<size_t>(tokens) + kPadding;

  int32_t* ids = stage<int32_t>(index(Section::kTokens), padded);
  std::fill(std::copy(inputs.tokens.begin(), inputs.tokens.end(), ids), ids + padded, 0);
  int32_t* slots = stage<int32_t>(index(Section::kTokenSlots), padded);
  std::fill(std::copy(inputs.token_slots.begin(), inputs.token_slots.end(), slots), slots + padded,
            -1);
  const size_t logit_padded = inputs.logit_tokens.size() + kPadding;
  int32_t* logits = stage<int32_t>(index(Section::kLogitTokens), logit_padded);
  std::fill(std::copy(inputs.logit_tokens.begin(), inputs.logit_tokens.end(), logits),
            logits + logit_padded, 0);

  device_rows_.clear();
  decode_rows_ = 0;
  int32_t* token_rows = stage<int32_t>(index(Section::kTokenRows), static_cast<size_t>(tokens));
  int32_t* all_rows = stage<int32_t>(index(Section::kAllTokenRows), static_cast<size_t>(tokens));
  std::fill_n(token_rows, tokens, -1);
  std::fill_n(all_rows, tokens, -1);
  for (size_t r = 0; r < rows.size(); ++r) {
    const AttentionRow& row = rows[r];
    device_rows_.push_back({row.token_begin, row.count, row.position, 0});
    const auto id = static_cast<int32_t>(r);
    std::fill_n(all_rows + row.token_begin, row.count, id);
    if (row.count > 1) std::fill_n(token_rows + row.token_begin, row.count, id);
    decode_rows_ += row.count == 1;
  }
  std::copy(device_rows_.begin(), device_rows_.end(),
            stage<DeviceRow>(index(Section::kRows), device_rows_.size()));

  const auto tiles_of = [&](Section section, int least_count) {
    std::vector<DeviceRow> chosen = device_rows_;
    for (DeviceRow& row : chosen) {
      if (row.count < least_count) row.count = 0;
    }
    plan_prefill(chosen, head_dim, tile_list_);
    std::copy(tile_list_.begin(), tile_list_.end(),
              stage<PrefillTile>(index(section), tile_list_.size()));
    return static_cast<int32_t>(tile_list_.size());
  };
  tile_count_ = 0;
  all_tile_count_ = 0;
  stage<PrefillTile>(index(Section::kTiles), 0);
  stage<PrefillTile>(index(Section::kAllTiles), 0);
  if (decode_rows_ < static_cast<int32_t>(rows.size())) tile_count_ = tiles_of(Section::kTiles, 2);

  for (size_t g = 0; g < inputs.groups.size(); ++g) {
    const auto& group = inputs.groups[g];
    const size_t first = kFixedSections + g * kGroupArrays;
    size_t entries = 0;
    const auto entries_of = [&](const AttentionRow& row) {
      return static_cast<size_t>((row.position + row.count + block_size - 1) / block_size);
    };
    for (const AttentionRow& row : group) entries += entries_of(row);
    int32_t* begins = stage<int32_t>(first, group.size());
    int32_t* blocks = stage<int32_t>(first + 3, entries);
    size_t next = 0;
    for (size_t r = 0; r < group.size(); ++r) {
      begins[r] = static_cast<int32_t>(next);
      std::copy_n(group[r].blocks, entries_of(group[r]), blocks + next);
      next += entries_of(group[r]);
    }
    std::vector<DeviceRow> decode = device_rows_;
    std::erase_if(decode, [](const DeviceRow& row) { return row.count != 1; });
    std::vector<int32_t> origin;
    for (size_t r = 0; r < device_rows_.size(); ++r) {
      if (device_rows_[r].count == 1) origin.push_back(static_cast<int32_t>(r));
    }
    items_.clear();
    if (!decode.empty()) {
      plan_decode(decode, inputs.windows.empty() ? 0 : inputs.windows[g], block_size, kv_heads,
                  multiprocessors_, kMaxItems, items_);
    }
    for (DecodeItem& item : items_) {
      item.row = origin[static_cast<size_t>(item.row)];
      item.table = begins[item.row];
    }
    std::copy(items_.begin(), items_.end(), stage<DecodeItem>(first + 1, items_.size()));
    *stage<int32_t>(first + 2, 1) = static_cast<int32_t>(items_.size());
  }
  const bool moved = fit();
  copy();
  return moved;
}

void StepArena::plan_all_tiles(int head_dim) {
  plan_prefill(device_rows_, head_dim, tile_list_);
  std::copy(tile_list_.begin(), tile_list_.end(),
            stage<PrefillTile>(static_cast<size_t>(Section::kAllTiles), tile_list_.size()));
  all_tile_count_ = static_cast<int32_t>(tile_list_.size());
  fit();
  copy();
}

size_t StepArena::first_capacity(size_t array) {
  const bool table = array >= kFixedSections && (array - kFixedSections) % kGroupArrays == 3;
  return (table ? kFirstBlocks : kFirstTokens) * sizeof(DecodeItem);
}

size_t StepArena::first_bytes(int groups) {
  size_t bytes = 0;
  const size_t arrays = kFixedSections + static_cast<size_t>(groups) * kGroupArrays;
  for (size_t i = 0; i < arrays; ++i) bytes += first_capacity(i);
  return bytes;
}

// Capacities for what is used; true if the arrays had to move.
bool StepArena::fit() {
  const bool fits = std::all_of(arrays_.begin(), arrays_.end(),
                                [](const Array& one) { return one.used <= one.capacity; });
  if (fits && device_ != nullptr) return false;
  size_t total = 0;
  for (size_t i = 0; i < arrays_.size(); ++i) {
    Array& one = arrays_[i];
    one.capacity = std::max({one.capacity, first_capacity(i), align(one.used + one.used / 2)});
    one.offset = total;
    total += one.capacity;
  }
  TRIREME_CUDA(cudaStreamSynchronize(stream_));  // recorded steps name the old arrays
  // Freeing would wait for the whole device, on which kernels may be waiting for other ranks.
  if (device_ != nullptr) outgrown_.push_back(device_);
  device_ = nullptr;
  TRIREME_CUDA(cudaMalloc(reinterpret_cast<void**>(&device_), total));
  device_bytes_ = total;
  return true;
}

void StepArena::copy() {
  size_t total = 0;
  for (const Array& one : arrays_) total += align(one.used);
  Staging& staging = staging_[turn_];
  turn_ = (turn_ + 1) % staging_.size();
  if (staging.pending) TRIREME_CUDA(cudaEventSynchronize(staging.done));
  if (staging.bytes < total) {
    if (staging.data != nullptr) outgrown_host_.push_back(staging.data);
    staging.data = nullptr;
    staging.bytes = 2 * total;
    TRIREME_CUDA(cudaMallocHost(reinterpret_cast<void**>(&staging.data), staging.bytes));
  }
  std::byte* next = staging.data;
  Pieces pieces;
  for (const Array& one : arrays_) {
    if (one.used == 0) continue;
    std::memcpy(next, one.values.data(), one.used);
    if (pieces.count == Pieces::kMost) {
      launch_scatter(pieces, stream_);
      pieces.count = 0;
    }
    pieces.pieces[pieces.count++] = {next, device_ + one.offset,
                                     static_cast<uint32_t>((one.used + 15) / 16 * 16)};
    next += align(one.used);
  }
  launch_scatter(pieces, stream_);
  TRIREME_CUDA(cudaEventRecord(staging.done, stream_));
  staging.pending = true;
}

}  // namespace trireme::cuda
