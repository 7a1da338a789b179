// Packed panels: a row comes back byte by byte, for every format and panel height. Where they lie.
#include "kernels/cpu/packing.h"

#include <cstring>

#include "kernels/cpu/weight_memory.h"
#include "tests/kernels/testing.h"

namespace trireme::testing {
namespace {

struct Rows {
  std::vector<std::byte> bytes;
  WeightSlice slice;

  Rows(Random& random, QuantFormat format, int64_t rows, int64_t cols) {
    const int64_t stride = row_bytes(format, cols);
    bytes.resize(static_cast<size_t>(rows * stride));
    for (std::byte& b : bytes) b = static_cast<std::byte>(random.integer(1, 255));
    slice = {
        format, rows,
        cols,   0,
        cols,   [this, stride](int64_t row, std::byte*) {
               return bytes.data() + row * stride; }};
  }
};

TEST(Packing, GivesRowsBack) {
  Random random;
  Buffer scratch;
  for (const QuantFormat format : kQuantFormats) {
    for (const int panel_rows : {1, 8, 16, 32}) {
      const int block = traits(format).block_elements;
      for (const int64_t blocks : {1, 2, 3, 8, 35}) {
        SCOPED_TRACE(
            fmt::format("{} panels of {}, {} blocks", traits(format).name, panel_rows, blocks));
        const int64_t cols = blocks * block, rows = panel_rows + random.integer(1, panel_rows);
        const Rows w(random, format, rows, cols);
        const auto bytes = static_cast<size_t>(row_bytes(format, cols));
        std::vector<std::byte> panel(
            static_cast<size_t>(cpu::panel_bytes(format, cols, panel_rows)));
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t in_panel = row % panel_rows;
          if (in_panel == 0) cpu::pack_panel(w.slice, row, panel_rows, scratch, panel.data());
          std::vector<std::byte> back(bytes + 8, std::byte{0});
          cpu::unpack_row(panel.data(), format, cols, static_cast<int>(in_panel), panel_rows,
                          back.data());
          std::vector<std::byte> want(w.bytes.begin() + row * static_cast<int64_t>(bytes),
                                      w.bytes.begin() + (row + 1) * static_cast<int64_t>(bytes));
          want.resize(bytes + 8, std::byte{0});  // and nothing behind it
          ASSERT_EQ(back, want) << "row " << row;
        }
      }
    }
  }
}

// Pairs of columns with those of the panel's rows side by side; the column that an odd number lacks
// and the rows that the last panel lacks are zero, whatever was there.
TEST(Packing, Bf16InPairs) {
  Random random;
  constexpr int kPanelRows = 8;
  const int64_t rows = 5, cols = 7;
  const Rows w(random, QuantFormat::kBF16, rows, cols);
  std::vector<uint16_t> panel(8 * kPanelRows, 0xffff);
  ASSERT_EQ(cpu::panel_bytes(QuantFormat::kBF16, cols, kPanelRows), 8 * kPanelRows * 2);
  Buffer scratch;
  cpu::pack_panel(w.slice, 0, kPanelRows, scratch, reinterpret_cast<std::byte*>(panel.data()));
  for (int64_t k = 0; k < 8; ++k) {
    for (int64_t row = 0; row < kPanelRows; ++row) {
      uint16_t want = 0;
      if (row < rows && k < cols) {
        std::memcpy(&want, &w.bytes[static_cast<size_t>((row * cols + k) * 2)], 2);
      }
      EXPECT_EQ(panel[static_cast<size_t>(k / 2 * kPanelRows * 2 + row * 2 + k % 2)], want)
          << "row " << row << ", column " << k;
    }
  }
}

// Weights are cut one after the other from a chunk, which outlives what cut it; small ones and
// large ones have memory of their own.
TEST(WeightMemory, CutsChunks) {
  constexpr size_t kMiB = size_t{1} << 20;
  std::vector<Buffer> taken;
  {
    cpu::WeightMemory memory;
    EXPECT_TRUE(memory.take(0).empty());
    for (const size_t bytes : {kMiB - 8, size_t{100}, 2 * kMiB, 65 * kMiB, kMiB}) {
      taken.push_back(memory.take(bytes));
      ASSERT_EQ(taken.back().size(), bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(taken.back().data()) % 64, 0u);
    }
  }
  EXPECT_EQ(taken[2].data(), taken[0].data() + kMiB);
  EXPECT_EQ(taken[4].data(), taken[2].data() + 2 * kMiB);
  for (size_t i = 0; i < taken.size(); ++i) {
    if (i != 3) std::memset(taken[i].data(), static_cast<int>(i), taken[i].size());
  }
  taken[2] = Buffer();
  EXPECT_EQ(taken[0].data()[kMiB - 9], std::byte{0});
  EXPECT_EQ(taken[1].data()[99], std::byte{1});
  EXPECT_EQ(taken[4].data()[0], std::byte{4});
}

}  // namespace
}  // namespace trireme::testing
