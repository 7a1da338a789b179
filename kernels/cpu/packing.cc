#include "kernels/cpu/packing.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

namespace trireme::cpu {
namespace {

struct Section {
  int offset;  // in the file's block
  int bytes;
  int unit;
  // Of a 4-byte unit of 32 bits, one for each element: bit i goes to bit i / 4 of byte i % 4, so
  // that a shift by g bits leaves those of elements 4g .. 4g + 3 in the same place of each byte.
  bool bits_to_bytes = false;
};

constexpr Section kF32[] = {{0, 4, 4}};
constexpr Section kF16[] = {{0, 2, 2}};
constexpr Section kBF16Pair[] = {{0, 4, 4}};
constexpr Section kQ8_0[] = {{2, 32, 4}, {0, 2, 2}};
constexpr Section kQ4_0[] = {{2, 16, 4}, {0, 2, 2}};
constexpr Section kQ4_1[] = {{4, 16, 4}, {0, 2, 2}, {2, 2, 2}};
constexpr Section kQ5_0[] = {{6, 16, 4}, {2, 4, 4, true}, {0, 2, 2}};
constexpr Section kQ5_1[] = {{8, 16, 4}, {4, 4, 4, true}, {0, 2, 2}, {2, 2, 2}};
constexpr Section kQ2_K[] = {{16, 64, 4}, {0, 16, 1}, {80, 2, 2}, {82, 2, 2}};
constexpr Section kQ3_K[] = {{0, 32, 4}, {32, 64, 4}, {96, 12, 1}, {108, 2, 2}};
constexpr Section kQ4_K[] = {{16, 128, 4}, {4, 12, 1}, {0, 2, 2}, {2, 2, 2}};
constexpr Section kQ5_K[] = {{48, 128, 4}, {16, 32, 4}, {4, 12, 1}, {0, 2, 2}, {2, 2, 2}};
constexpr Section kI4x32[] = {{5, 16, 4}, {0, 4, 4}, {4, 1, 1}};
constexpr Section kI4x128[] = {{5, 64, 4}, {0, 4, 4}, {4, 1, 1}};
constexpr Section kI8x32[] = {{4, 32, 4}, {0, 4, 4}};
constexpr Section kI8x128[] = {{4, 128, 4}, {0, 4, 4}};
constexpr Section kF8x32[] = {{4, 32, 1}, {0, 4, 4}};
constexpr Section kF8x128[] = {{4, 128, 1}, {0, 4, 4}};
constexpr Section kQ6_K[] = {{0, 128, 4}, {128, 64, 4}, {192, 16, 1}, {208, 2, 2}};

std::span<const Section> sections(QuantFormat format) {
  switch (format) {
    case QuantFormat::kF32: return kF32;
    case QuantFormat::kF16: return kF16;
    case QuantFormat::kBF16: return kBF16Pair;
    case QuantFormat::kQ8_0: return kQ8_0;
    case QuantFormat::kQ4_0:
    case QuantFormat::kIQ4_NL: return kQ4_0;
    case QuantFormat::kQ4_1: return kQ4_1;
    case QuantFormat::kQ5_0: return kQ5_0;
    case QuantFormat::kQ5_1: return kQ5_1;
    case QuantFormat::kQ2_K: return kQ2_K;
    case QuantFormat::kQ3_K: return kQ3_K;
    case QuantFormat::kQ4_K: return kQ4_K;
    case QuantFormat::kQ5_K: return kQ5_K;
    case QuantFormat::kQ6_K: return kQ6_K;
    case QuantFormat::kI4x32: return kI4x32;
    case QuantFormat::kI4x128: return kI4x128;
    case QuantFormat::kI8x32: return kI8x32;
    case QuantFormat::kI8x128: return kI8x128;
    case QuantFormat::kF8x32: return kF8x32;
    case QuantFormat::kF8x128: return kF8x128;
  }
  return {};
}

// Calls move(offset in the packed block, offset in the file's block, section) for each unit of
// `row`.
template <typename Move>
void for_units(std::span<const Section> layout, int row, int panel_rows, Move move) {
  int64_t base = 0;
  for (const Section& section : layout) {
    for (int at = 0; at < section.bytes; at += section.unit) {
      move(base + int64_t{at} * panel_rows + int64_t{row} * section.unit, section.offset + at,
           section);
    }
    base += int64_t{section.bytes} * panel_rows;
  }
}

uint32_t bits_to_bytes(uint32_t bits) {
  uint32_t bytes = 0;
  for (unsigned i = 0; i < 32; ++i) bytes |= ((bits >> i) & 1u) << (i % 4 * 8 + i / 4);
  return bytes;
}

uint32_t bytes_to_bits(uint32_t bytes) {
  uint32_t bits = 0;
  for (unsigned i = 0; i < 32; ++i) bits |= ((bytes >> (i % 4 * 8 + i / 4)) & 1u) << i;
  return bits;
}

// memcpy with the few sizes a unit has, so that each becomes one move.
void copy_unit(std::byte* to, const std::byte* from, const Section& section,
               uint32_t (*rearrange)(uint32_t)) {
  if (section.bits_to_bytes) {
    uint32_t unit;
    std::memcpy(&unit, from, 4);
    unit = rearrange(unit);
    std::memcpy(to, &unit, 4);
    return;
  }
  switch (section.unit) {
    case 1: std::memcpy(to, from, 1); break;
    case 2: std::memcpy(to, from, 2); break;
    default: std::memcpy(to, from, 4); break;
  }
}

}  // namespace

PackedBlock packed_block(QuantFormat format) {
  if (format == QuantFormat::kBF16) return {2, 4};
  const QuantTraits& t = traits(format);
  return {t.block_elements, t.block_bytes};
}

int64_t packed_cols(QuantFormat format, int64_t cols) {
  const int elements = packed_block(format).elements;
  return (cols + elements - 1) / elements * elements;
}

int64_t panel_bytes(QuantFormat format, int64_t cols, int panel_rows) {
  return row_bytes(format, packed_cols(format, cols)) * panel_rows;
}

void pack_panel(const WeightSlice& slice, int64_t row_begin, int panel_rows, std::byte* panel) {
  const PackedBlock b = packed_block(slice.format);
  const int64_t blocks = packed_cols(slice.format, slice.cols) / b.elements;
  const auto bytes = static_cast<size_t>(row_bytes(slice.format, slice.cols));
  const int64_t packed = int64_t{b.bytes} * panel_rows;
  const auto layout = sections(slice.format);
  const auto rows = static_cast<int>(std::min<int64_t>(panel_rows, slice.rows - row_begin));
  if (rows < panel_rows) std::memset(panel, 0, static_cast<size_t>(blocks * packed));
  std::vector<std::byte> scratch(bytes);
  std::vector<std::byte> whole(static_cast<size_t>(blocks * b.bytes));  // where a block is cut off
  for (int row = 0; row < rows; ++row) {
    const std::byte* from = slice.row(row_begin + row, scratch.data());
    if (whole.size() != bytes) {
      std::memcpy(whole.data(), from, bytes);
      from = whole.data();
    }
    std::byte* to = panel;
    for (int64_t block = 0; block < blocks; ++block, from += b.bytes, to += packed) {
      for_units(layout, row, panel_rows, [&](int64_t at, int file, const Section& section) {
        copy_unit(to + at, from + file, section, bits_to_bytes);
      });
    }
  }
}

void unpack_row(const std::byte* panel, QuantFormat format, int64_t cols, int row, int panel_rows,
                std::byte* blocks) {
  const PackedBlock b = packed_block(format);
  const auto layout = sections(format);
  const auto unpack = [&](std::byte* to) {
    for_units(layout, row, panel_rows, [&](int64_t at, int file, const Section& section) {
      copy_unit(to + file, panel + at, section, bytes_to_bits);
    });
    panel += int64_t{b.bytes} * panel_rows;
  };
  for (int64_t block = 0; block < cols / b.elements; ++block, blocks += b.bytes) unpack(blocks);
  if (cols % b.elements == 0) return;
  std::byte last[4];  // a pair of bf16, of which the first is the row's
  unpack(last);
  std::memcpy(blocks, last, static_cast<size_t>(row_bytes(format, cols % b.elements)));
}

}  // namespace trireme::cpu
