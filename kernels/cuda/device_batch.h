// A step's rows as kernels see them: device memory at addresses that never change, so that a
// captured graph reads each step's values from the same places. Filled by one copy before the step.
#pragma once

#include <cstdint>

namespace trireme::cuda {

// Consecutive tokens of one sequence within the batch (AttentionRow on the device).
struct DeviceRow {
  int32_t token_begin = 0;
  int32_t count = 0;     // tokens; 1 in decode
  int32_t position = 0;  // of the first token in its sequence
  int32_t unused = 0;
};

// The block tables of one KV group: row i's table is blocks + table_begin[i], and its entry
// p / block_size is the block of position p.
struct DeviceTables {
  const int32_t* blocks = nullptr;
  const int32_t* table_begin = nullptr;  // [rows], element offsets
};

// The paged KV of one layer: K and V apart, each [block][kv_head][token][dim], elements.
struct DeviceKv {
  void* k = nullptr;
  void* v = nullptr;
  int64_t blocks = 0;  // how many blocks there are (for tensor maps)
  int kv_heads = 0;
  int head_dim = 0;
  int block_size = 0;
};

}  // namespace trireme::cuda
