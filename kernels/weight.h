// A weight matrix as the kernels hold it: one tensor-parallel slice, packed once by its backend.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/buffer.h"
#include "kernels/quant.h"

namespace trireme {

// Where the loader finds a slice [rows, cols] of a matrix W[out, in] (y = x Wᵀ).
//
// Columns are whole blocks of the format. Where a tensor-parallel boundary cuts a block, the slice
// holds the whole block and only the columns [col_begin, col_begin + col_count) are this rank's:
// the activations have col_count columns and the foreign ones count as zero, so weights stay
// exact and nothing is requantized. For plain formats col_begin = 0 and col_count = cols.
struct WeightSlice {
  QuantFormat format = QuantFormat::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t col_begin = 0;
  int64_t col_count = 0;
  // The blocks of row i of the slice, row_bytes(format, cols) bytes: where the file has them, or
  // written to `scratch` (as many bytes). May be called from any thread.
  std::function<const std::byte*(int64_t row, std::byte* scratch)> row;
  // Where columns are not in the order of x (act-order): [cols], which element of x [col_count] is
  // multiplied with column j; -1: none. col_begin is 0 then. Empty: in order.
  std::vector<int32_t> order = {};
};

// Owned and immutable. `packing` is private to the backend that made it.
struct Weight {
  QuantFormat format = QuantFormat::kF32;
  int64_t rows = 0;       // outputs of this slice
  int64_t cols = 0;       // columns held, whole blocks
  int64_t col_begin = 0;  // as in WeightSlice
  int64_t col_count = 0;
  int packing = 0;
  std::vector<int32_t> order;  // as in WeightSlice
  Buffer data;

  bool empty() const { return rows == 0; }
};

}  // namespace trireme
