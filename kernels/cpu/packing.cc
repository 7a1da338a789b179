#include "kernels/cpu/packing.h"

#include <algorithm>
#include <cstring>
#include <span>

namespace trireme::cpu {
namespace {

struct Section {
  int offset;  // in the file's block
  int bytes;
  int unit;
};

constexpr Section kF32[] = {{0, 4, 4}};
constexpr Section kHalf[] = {{0, 2, 2}};
constexpr Section kQ8_0[] = {{2, 32, 4}, {0, 2, 2}};
constexpr Section kQ4_0[] = {{2, 16, 4}, {0, 2, 2}};
constexpr Section kQ4_1[] = {{4, 16, 4}, {0, 2, 2}, {2, 2, 2}};
constexpr Section kQ6_K[] = {{0, 128, 4}, {128, 64, 4}, {192, 16, 1}, {208, 2, 2}};

std::span<const Section> sections(QuantFormat format) {
  switch (format) {
    case QuantFormat::kF32: return kF32;
    case QuantFormat::kF16:
    case QuantFormat::kBF16: return kHalf;
    case QuantFormat::kQ8_0: return kQ8_0;
    case QuantFormat::kQ4_0: return kQ4_0;
    case QuantFormat::kQ4_1: return kQ4_1;
    case QuantFormat::kQ6_K: return kQ6_K;
  }
  return {};
}

// Calls move(offset in the packed block, offset in the file's block, bytes) for each unit of `row`.
template <typename Move>
void for_units(std::span<const Section> layout, int row, int panel_rows, Move move) {
  int64_t base = 0;
  for (const Section& section : layout) {
    for (int at = 0; at < section.bytes; at += section.unit) {
      move(base + int64_t{at} * panel_rows + int64_t{row} * section.unit, section.offset + at,
           section.unit);
    }
    base += int64_t{section.bytes} * panel_rows;
  }
}

// memcpy with the few sizes a unit has, so that each becomes one move.
void copy_unit(std::byte* to, const std::byte* from, int bytes) {
  switch (bytes) {
    case 1: std::memcpy(to, from, 1); break;
    case 2: std::memcpy(to, from, 2); break;
    default: std::memcpy(to, from, 4); break;
  }
}

}  // namespace

int64_t panel_bytes(QuantFormat format, int64_t cols, int panel_rows) {
  return row_bytes(format, cols) * panel_rows;
}

void pack_panel(const WeightSlice& slice, int64_t row_begin, int panel_rows, std::byte* panel) {
  const QuantTraits& t = traits(slice.format);
  const int64_t blocks = slice.cols / t.block_elements;
  const int64_t packed_block = int64_t{t.block_bytes} * panel_rows;
  const auto layout = sections(slice.format);
  const auto rows = static_cast<int>(std::min<int64_t>(panel_rows, slice.rows - row_begin));
  if (rows < panel_rows) std::memset(panel, 0, static_cast<size_t>(blocks * packed_block));
  for (int row = 0; row < rows; ++row) {
    const std::byte* from = slice.row(row_begin + row);
    std::byte* to = panel;
    for (int64_t block = 0; block < blocks; ++block, from += t.block_bytes, to += packed_block) {
      for_units(layout, row, panel_rows, [&](int64_t packed, int file, int bytes) {
        copy_unit(to + packed, from + file, bytes);
      });
    }
  }
}

void unpack_row(const std::byte* panel, QuantFormat format, int64_t cols, int row, int panel_rows,
                std::byte* blocks) {
  const QuantTraits& t = traits(format);
  const auto layout = sections(format);
  for (int64_t block = 0; block < cols / t.block_elements; ++block) {
    for_units(layout, row, panel_rows, [&](int64_t packed, int file, int bytes) {
      copy_unit(blocks + file, panel + packed, bytes);
    });
    panel += int64_t{t.block_bytes} * panel_rows;
    blocks += t.block_bytes;
  }
}

}  // namespace trireme::cpu
