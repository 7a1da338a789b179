#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/dtype.h"
#include "base/matrix_view.h"

namespace trireme {
namespace {

// The value of binary16 bits, from the definition.
double f16_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(DType, F16ToF32IsExactForEveryPattern) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float got = f16_to_f32(static_cast<uint16_t>(bits));
    const double want = f16_value(static_cast<uint16_t>(bits));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
      ASSERT_TRUE(std::isnan(f16_to_f32(f32_to_f16(got))));
      continue;
    }
    ASSERT_EQ(static_cast<double>(got), want) << bits;
    ASSERT_EQ(std::signbit(got), std::signbit(want)) << bits;
    ASSERT_EQ(f32_to_f16(got), bits);
  }
}

// Around every midpoint of two neighbours, of either sign: nearest, and ties to even.
TEST(DType, F32ToF16RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    // The neighbour of the largest finite value counts as 65536.
    const double above = bits == 0x7bff ? 65536.0 : f16_value(high);
    const auto middle = static_cast<float>((f16_value(low) + above) / 2);
    const uint16_t even = (low & 1) == 0 ? low : high;
    for (const uint16_t sign : {uint16_t{0}, uint16_t{0x8000}}) {
      const float s = sign != 0 ? -1.0f : 1.0f;
      ASSERT_EQ(f32_to_f16(s * middle), even | sign) << bits;
      ASSERT_EQ(f32_to_f16(s * std::nextafter(middle, 0.0f)), low | sign) << bits;
      ASSERT_EQ(f32_to_f16(s * std::nextafter(middle, INFINITY)), high | sign) << bits;
    }
  }
  EXPECT_EQ(f32_to_f16(1e30f), 0x7c00);
  EXPECT_EQ(f32_to_f16(INFINITY), 0x7c00);
}

// Every upper half with every kind of lower half; bf16 is the upper half of a float.
TEST(DType, F32ToBF16RoundsToNearestEven) {
  for (uint32_t high = 0; high < 65536; ++high) {
    const auto exact = static_cast<uint16_t>(high);
    const bool nan = std::isnan(std::bit_cast<float>(high << 16 | 1u));
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float value = std::bit_cast<float>(high << 16 | low);
      const uint16_t got = f32_to_bf16(value);
      if (std::isnan(value)) {
        ASSERT_TRUE(std::isnan(bf16_to_f32(got)));
        continue;
      }
      const bool up = low > 0x8000u || (low == 0x8000u && (exact & 1) != 0);
      ASSERT_EQ(got, static_cast<uint16_t>(exact + (up ? 1 : 0))) << high << " " << low;
    }
    if (nan) continue;
    ASSERT_EQ(std::bit_cast<uint32_t>(bf16_to_f32(exact)), high << 16);
  }
}

TEST(DType, Sizes) {
  EXPECT_EQ(size_of(DType::kF32), 4u);
  EXPECT_EQ(size_of(DType::kF16), 2u);
  EXPECT_EQ(size_of(DType::kBF16), 2u);
  EXPECT_STREQ(to_string(DType::kBF16), "bf16");
}

TEST(MatrixView, Ranges) {
  float data[6 * 10] = {};
  const MatrixView m{data, DType::kF32, 6, 8, 10};
  EXPECT_EQ(m.f32(2), data + 20);
  const MatrixView part = m.row_range(1, 3).col_range(4, 2);
  EXPECT_EQ(part.f32(), data + 14);
  EXPECT_EQ(part.f32(2), data + 34);
  EXPECT_EQ(part.rows, 3);
  EXPECT_EQ(part.cols, 2);
  EXPECT_EQ(part.stride, 10);
  const MatrixView half{data, DType::kBF16, 6, 8, 10};
  EXPECT_EQ(half.row_range(1, 1).col_range(3, 1).data, reinterpret_cast<std::byte*>(data) + 26);
}

}  // namespace
}  // namespace trireme
