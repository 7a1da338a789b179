// A mixture of experts on the GPU: the router's choice, rows sorted by expert, one product of all
// experts for gate and up and one for down, and the sum. Sizes are known before the choice is, so
// that a graph can replay it; every step goes by tables that the one before it wrote.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace trireme::cuda {

inline constexpr int kMaxExperts = 1024;

// Rows [begin, begin + count) of the list of an expert's rows; expert < 0: nothing.
struct ExpertTile {
  int32_t expert = -1;
  int32_t begin = 0;
  int32_t count = 0;
};

// Device memory of one call, carved from its scratch.
struct ExpertScratch {
  int32_t* chosen = nullptr;    // [tokens][per_token], by rising number
  float* weights = nullptr;     // the same
  int32_t* places = nullptr;    // the same: the row's place in the list; -1: the expert is not here
  int32_t* rows = nullptr;      // [tokens * per_token], the list: tokens sorted by expert
  ExpertTile* tiles = nullptr;  // [most_tiles]
  void* inner = nullptr;        // elements [tokens * per_token, ffn]
  void* outer = nullptr;        // elements [tokens * per_token, hidden]
  int64_t most_tiles = 0;
  int tile_rows = 0;  // 16 or 64
  size_t bytes = 0;
};

struct Experts {
  const void* x = nullptr;  // elements [tokens, hidden], rows x_stride apart
  int64_t x_stride = 0;
  int32_t tokens = 0;
  int64_t hidden = 0;            // multiples of 8
  int64_t ffn = 0;               //
  const void* router = nullptr;  // elements [experts, hidden]
  const void* gate = nullptr;    // of the first expert held
  const void* up = nullptr;
  const void* down = nullptr;
  int64_t inner_stride = 0;  // elements between an expert's gate and the next one's; ups too
  int64_t outer_stride = 0;  // the same of the downs
  int experts = 0;           // at most kMaxExperts
  int per_token = 0;
  int first = 0;
  int held = 0;
  bool normalize = true;
  bool gelu_tanh = false;
  void* out = nullptr;  // elements; with `accumulate` float32. Rows out_stride apart
  int64_t out_stride = 0;
  bool accumulate = false;
};

// With base null only the bytes count.
ExpertScratch carve_experts(std::byte* base, int64_t tokens, int per_token, int held,
                            int64_t hidden, int64_t ffn);

void launch_experts(const Experts& experts, const ExpertScratch& scratch, cudaStream_t stream);

}  // namespace trireme::cuda
