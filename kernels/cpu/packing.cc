#include "kernels/cpu/packing.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

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
// Those of the K formats in the order in which kernels first read them: memory sees one stream.
constexpr Section kQ2_K[] = {{0, 16, 1}, {80, 2, 2}, {82, 2, 2}, {16, 64, 4}};
constexpr Section kQ3_K[] = {{96, 12, 1}, {108, 2, 2}, {0, 32, 4}, {32, 64, 4}};
constexpr Section kQ4_K[] = {{4, 12, 1}, {0, 2, 2}, {2, 2, 2}, {16, 128, 4}};
constexpr Section kQ5_K[] = {{4, 12, 1}, {0, 2, 2}, {2, 2, 2}, {16, 32, 4}, {48, 128, 4}};
constexpr Section kQ6_K[] = {{192, 16, 1}, {208, 2, 2},  {128, 32, 4},
                             {0, 64, 4},   {160, 32, 4}, {64, 64, 4}};
constexpr Section kI4x32[] = {{5, 16, 4}, {0, 4, 4}, {4, 1, 1}};
constexpr Section kI4x128[] = {{5, 64, 4}, {0, 4, 4}, {4, 1, 1}};
constexpr Section kI8x32[] = {{4, 32, 4}, {0, 4, 4}};
constexpr Section kI8x128[] = {{4, 128, 4}, {0, 4, 4}};
constexpr Section kF8x32[] = {{4, 32, 1}, {0, 4, 4}};
constexpr Section kF8x128[] = {{4, 128, 1}, {0, 4, 4}};

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

// Exchanges the bits of `mask` with those `distance` above.
uint32_t swap_bits(uint32_t x, uint32_t mask, int distance) {
  const uint32_t differ = (x ^ (x >> distance)) & mask;
  return x ^ differ ^ (differ << distance);
}

// Of a bit's place in 5 bits, the two lowest become the highest: a swap each, and the last of them.
uint32_t bits_to_bytes(uint32_t x) {
  x = swap_bits(x, 0x0a0a0a0a, 3);
  x = swap_bits(x, 0x00cc00cc, 6);
  x = swap_bits(x, 0x0000f0f0, 12);
  return swap_bits(x, 0x0000ff00, 8);
}

uint32_t bytes_to_bits(uint32_t x) {
  x = swap_bits(x, 0x0000ff00, 8);
  x = swap_bits(x, 0x0000f0f0, 12);
  x = swap_bits(x, 0x00cc00cc, 6);
  return swap_bits(x, 0x0a0a0a0a, 3);
}

// So many rows are packed together: their units fill half a cache line of the panel or more where
// those have 4 bytes, and the processor follows so many streams of a file.
constexpr int kRowsAtOnce = 8;

// Units of kUnit bytes of a and b in turns: those of their first halves, or of their second.
using Bytes16 = uint8_t __attribute__((vector_size(16)));
template <int kUnit, int kHalf, int... kAt>
Bytes16 zip(Bytes16 a, Bytes16 b, std::integer_sequence<int, kAt...> /*unused*/) {
  return __builtin_shufflevector(
      a, b, (kAt / kUnit % 2 * 16 + kHalf * 8 + kAt / (2 * kUnit) * kUnit + kAt % kUnit)...);
}
template <int kUnit, int kHalf>
Bytes16 zip(Bytes16 a, Bytes16 b) {
  return zip<kUnit, kHalf>(a, b, std::make_integer_sequence<int, 16>());
}

// 16 bytes of each of 4 rows: a unit of every row, `stride` bytes further the next of every row.
template <int kUnit>
void pack_four(const std::byte* const* rows, int64_t at, std::byte* to, int64_t stride) {
  constexpr int kGroup = 4 * kUnit;
  Bytes16 row[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&row[i], rows[i] + at, 16);
  const Bytes16 a = zip<kUnit, 0>(row[0], row[1]), b = zip<kUnit, 0>(row[2], row[3]);
  const Bytes16 c = zip<kUnit, 1>(row[0], row[1]), d = zip<kUnit, 1>(row[2], row[3]);
  const Bytes16 packed[] = {zip<2 * kUnit, 0>(a, b), zip<2 * kUnit, 1>(a, b),
                            zip<2 * kUnit, 0>(c, d), zip<2 * kUnit, 1>(c, d)};
  const auto* from = reinterpret_cast<const std::byte*>(packed);
  for (int i = 0; i < 16 / kUnit; ++i) std::memcpy(to + i * stride, from + i * kGroup, kGroup);
}

// `bytes` from `at` on of each of `count` <= kRowsAtOnce rows.
template <int kUnit>
void pack_units(const std::byte* const* rows, int count, int64_t at, int64_t bytes, std::byte* to,
                int64_t stride) {
  const int64_t end = at + bytes;
  if (count == kRowsAtOnce) {
    for (; end - at >= 16; at += 16, to += 16 / kUnit * stride) {
      for (int i = 0; i < kRowsAtOnce; i += 4) {
        pack_four<kUnit>(rows + i, at, to + i * kUnit, stride);
      }
    }
  }
  for (; at < end; at += kUnit, to += stride) {
    for (int i = 0; i < count; ++i) std::memcpy(to + i * kUnit, rows[i] + at, kUnit);
  }
}

void pack_bits(const std::byte* const* rows, int count, int64_t at, std::byte* to) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, rows[i] + at, 4);
    bits = bits_to_bytes(bits);
    std::memcpy(to + int64_t{i} * 4, &bits, 4);
  }
}

// The blocks at rows[0 .. count) + at to rows `row` and following of the panel's block.
void pack_block(std::span<const Section> layout, const std::byte* const* rows, int count,
                int64_t at, int row, int panel_rows, std::byte* block) {
  for (const Section& section : layout) {
    const int64_t begin = at + section.offset;
    const int64_t stride = int64_t{section.unit} * panel_rows;
    std::byte* to = block + int64_t{section.unit} * row;
    if (section.bits_to_bytes) {
      pack_bits(rows, count, begin, to);
    } else {
      switch (section.unit) {
        case 1: pack_units<1>(rows, count, begin, section.bytes, to, stride); break;
        case 2: pack_units<2>(rows, count, begin, section.bytes, to, stride); break;
        default: pack_units<4>(rows, count, begin, section.bytes, to, stride); break;
      }
    }
    block += int64_t{section.bytes} * panel_rows;
  }
}

template <int kUnit>
void unpack_units(const std::byte* from, int64_t stride, int64_t bytes, std::byte* to) {
  for (int64_t at = 0; at < bytes; at += kUnit, from += stride) std::memcpy(to + at, from, kUnit);
}

// Row `row` of the panel's block.
void unpack_block(std::span<const Section> layout, const std::byte* block, int row, int panel_rows,
                  std::byte* blocks) {
  for (const Section& section : layout) {
    const int64_t stride = int64_t{section.unit} * panel_rows;
    const std::byte* from = block + int64_t{section.unit} * row;
    std::byte* to = blocks + section.offset;
    switch (section.unit) {
      case 1: unpack_units<1>(from, stride, section.bytes, to); break;
      case 2: unpack_units<2>(from, stride, section.bytes, to); break;
      default: unpack_units<4>(from, stride, section.bytes, to); break;
    }
    if (section.bits_to_bytes) {
      uint32_t bits;
      std::memcpy(&bits, to, 4);
      bits = bytes_to_bits(bits);
      std::memcpy(to, &bits, 4);
    }
    block += int64_t{section.bytes} * panel_rows;
  }
}

// A plain format's blocks, `bytes` in all, as one: they lie as its units do.
Section all_units(QuantFormat format, int64_t bytes) {
  return {0, static_cast<int>(bytes), sections(format).front().unit};
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

void pack_panel(const WeightSlice& slice, int64_t row_begin, int panel_rows, Buffer& scratch,
                std::byte* panel) {
  const PackedBlock b = packed_block(slice.format);
  const int64_t bytes = row_bytes(slice.format, slice.cols);
  const int64_t whole = packed_cols(slice.format, slice.cols) / b.elements * b.bytes;
  const bool one = is_plain(slice.format);
  const Section plain = all_units(slice.format, whole);
  const auto layout = one ? std::span(&plain, 1) : sections(slice.format);
  const int64_t block = one ? whole : b.bytes;
  const auto rows = static_cast<int>(std::min<int64_t>(panel_rows, slice.rows - row_begin));
  if (rows < panel_rows) std::memset(panel, 0, static_cast<size_t>(whole * panel_rows));
  const auto need = static_cast<size_t>(whole * kRowsAtOnce);
  if (scratch.size() < need) scratch = Buffer(need);
  for (int row = 0; row < rows; row += kRowsAtOnce) {
    const int count = std::min(kRowsAtOnce, rows - row);
    const std::byte* from[kRowsAtOnce];
    for (int i = 0; i < count; ++i) {
      std::byte* own = scratch.data() + whole * i;
      from[i] = slice.row(row_begin + row + i, own);
      if (whole == bytes) continue;  // else a block is cut off
      if (from[i] != own) std::memcpy(own, from[i], static_cast<size_t>(bytes));
      std::memset(own + bytes, 0, static_cast<size_t>(whole - bytes));
      from[i] = own;
    }
    for (int64_t at = 0; at < whole; at += block) {
      pack_block(layout, from, count, at, row, panel_rows, panel + at * panel_rows);
    }
  }
}

void unpack_row(const std::byte* panel, QuantFormat format, int64_t cols, int row, int panel_rows,
                std::byte* blocks) {
  const PackedBlock b = packed_block(format);
  const int64_t whole = cols / b.elements * b.bytes;
  const bool one = is_plain(format);
  const Section plain = all_units(format, whole);
  const auto layout = one ? std::span(&plain, 1) : sections(format);
  const int64_t block = one ? whole : b.bytes;
  for (int64_t at = 0; at < whole; at += block) {
    unpack_block(layout, panel + at * panel_rows, row, panel_rows, blocks + at);
  }
  if (cols % b.elements == 0) return;
  std::byte last[4];  // a pair of bf16, of which the first is the row's
  unpack_block(sections(format), panel + whole * panel_rows, row, panel_rows, last);
  std::memcpy(blocks + whole, last, static_cast<size_t>(row_bytes(format, cols % b.elements)));
}

}  // namespace trireme::cpu
