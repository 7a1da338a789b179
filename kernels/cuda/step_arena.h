// The inputs of a step on the device: packed into page-locked host memory and copied to fixed
// addresses, so that recorded graphs find each step's values where they found the last one's.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/attention.h"

namespace trireme::cuda {

// One KV group's view of the step.
struct StepGroup {
  DeviceTables tables;
  const DecodeItem* items = nullptr;    // of the rows with one token
  const int32_t* item_count = nullptr;  // device
  int32_t max_items = 0;
};

class StepArena {
 public:
  StepArena(cudaStream_t stream, int multiprocessors);
  ~StepArena();
  StepArena(const StepArena&) = delete;
  StepArena& operator=(const StepArena&) = delete;

  // Copies the inputs; `kv_heads` and `block_size` shape the decode work. True if the device
  // addresses have moved: what was recorded with the old ones must be forgotten.
  bool fill(const StepInputs& inputs, int kv_heads, int block_size, int head_dim);

  // Query tiles of all rows, decode rows too: for callers that ask for the attention alone.
  void plan_all_tiles(int head_dim);

  // The vectors of the last fill() are not to be known again by their addresses.
  void forget_inputs() { inputs_ = {}; }

  // Whether the step's own vectors are meant (by address).
  bool has_tokens(std::span<const int32_t> tokens) const;
  bool has_logit_tokens(std::span<const int32_t> tokens) const;
  int group_of(std::span<const AttentionRow> rows) const;  // -1: none of this step

  const int32_t* tokens() const { return at<int32_t>(Section::kTokens); }
  // StepInputs::token_slots; -1 where they say nothing.
  const int32_t* token_slots() const { return at<int32_t>(Section::kTokenSlots); }
  const int32_t* logit_tokens() const { return at<int32_t>(Section::kLogitTokens); }
  const DeviceRow* rows() const { return at<DeviceRow>(Section::kRows); }
  // The row of each token; -1 where it is a decode row's, which decode attention prepares itself.
  const int32_t* token_rows() const { return at<int32_t>(Section::kTokenRows); }
  // The same with the decode rows.
  const int32_t* all_token_rows() const { return at<int32_t>(Section::kAllTokenRows); }
  // Query tiles of the rows of more than one token, and of all rows.
  const PrefillTile* tiles() const { return at<PrefillTile>(Section::kTiles); }
  const PrefillTile* all_tiles() const { return at<PrefillTile>(Section::kAllTiles); }
  int32_t tile_count() const { return tile_count_; }
  int32_t all_tile_count() const { return all_tile_count_; }
  int32_t token_count() const { return token_count_; }
  bool has_decode() const { return decode_rows_ > 0; }
  bool has_prefill() const { return tile_count_ > 0; }
  StepGroup group(int index) const;

  static constexpr int32_t kMaxItems = 4096;
  // Device memory that it begins with.
  static size_t first_bytes(int groups);

 private:
  enum class Section : uint8_t {
    kTokens,
    kTokenSlots,
    kLogitTokens,
    kRows,
    kTokenRows,
    kAllTokenRows,
    kTiles,
    kAllTiles,
    kGroups  // per group: table_begin, items, item_count, blocks
  };
  static constexpr size_t kFixedSections = 8;
  // One array on the device with its host twin, and how much of it this step uses.
  struct Array {
    size_t offset = 0;
    size_t capacity = 0;  // bytes
    size_t used = 0;
    std::vector<std::byte> values;
  };
  template <typename T>
  const T* at(Section section) const {
    return reinterpret_cast<const T*>(device_ + arrays_[static_cast<size_t>(section)].offset);
  }
  template <typename T>
  T* stage(size_t array, size_t count);
  static size_t first_capacity(size_t array);
  bool fit();
  void copy();

  cudaStream_t stream_;
  int multiprocessors_;
  std::vector<Array> arrays_;
  std::byte* device_ = nullptr;
  std::vector<std::byte*> outgrown_, outgrown_host_;
  size_t device_bytes_ = 0;
  // Page-locked staging, used in turns so that a copy under way is not overwritten.
  struct Staging {
    std::byte* data = nullptr;
    size_t bytes = 0;
    cudaEvent_t done = nullptr;
    bool pending = false;
  };
  std::array<Staging, 3> staging_;
  size_t turn_ = 0;
  StepInputs inputs_;
  std::vector<DeviceRow> device_rows_;
  std::vector<DecodeItem> items_;
  std::vector<PrefillTile> tile_list_;
  int32_t tile_count_ = 0, all_tile_count_ = 0, token_count_ = 0, decode_rows_ = 0;
};

}  // namespace trireme::cuda
