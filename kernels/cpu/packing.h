// How weights lie in memory: `panel_rows` rows interleaved, at the file's own size.
//
// A panel is [k block][section][unit][row][unit bytes]: the blocks of its rows, cut into sections
// (quants, scales) and those into units (4 quants, one scale), with the units of the rows side by
// side, so that one vector register holds the same unit of every row. It is a permutation of the
// file's bytes (of its bits, where those are one an element): nothing is rounded, and unpack_row
// gives the row back. A thread that multiplies consecutive panels reads one sequential stream. Rows
// missing in the last panel are zero bytes, and so is the column that an odd number of bf16 lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "kernels/weight.h"

namespace trireme::cpu {

// What is packed as one block: the format's own, but pairs of bf16, which is what dot products
// take.
struct PackedBlock {
  int elements;
  int bytes;
};
PackedBlock packed_block(QuantFormat format);

// `cols` rounded up to whole packed blocks.
int64_t packed_cols(QuantFormat format, int64_t cols);

int64_t panel_bytes(QuantFormat format, int64_t cols, int panel_rows);

// One panel from rows [row_begin, min(row_begin + panel_rows, slice.rows)). `scratch` grows to a
// few rows and may be used again by the same thread.
void pack_panel(const WeightSlice& slice, int64_t row_begin, int panel_rows, Buffer& scratch,
                std::byte* panel);

// The blocks of one row as the file has them: row_bytes(format, cols) bytes.
void unpack_row(const std::byte* panel, QuantFormat format, int64_t cols, int row, int panel_rows,
                std::byte* blocks);

}  // namespace trireme::cpu
