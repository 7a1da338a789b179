// What the kernel tests share: seeds, random weights, outputs with poisoned surroundings, errors.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/backend.h"

namespace trireme::testing {

constexpr CpuIsa kIsas[] = {CpuIsa::kReference, CpuIsa::kAvx2, CpuIsa::kAvx512};
constexpr QuantFormat kFormats[] = {QuantFormat::kF32,  QuantFormat::kF16,  QuantFormat::kBF16,
                                    QuantFormat::kQ8_0, QuantFormat::kQ4_0, QuantFormat::kQ4_1,
                                    QuantFormat::kQ6_K};
constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// A fresh seed for each test, printed if it fails; TRIREME_TEST_SEED repeats one.
class Random {
 public:
  Random()
      : seed_(std::getenv("TRIREME_TEST_SEED") != nullptr
                  ? static_cast<uint32_t>(std::stoul(std::getenv("TRIREME_TEST_SEED")))
                  : std::random_device{}()),
        engine_(seed_),
        trace_(__FILE__, __LINE__, "TRIREME_TEST_SEED=" + std::to_string(seed_)) {}

  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  std::vector<float> normals(int64_t count, float scale = 1.0f) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = scale * normal();
    return values;
  }
  template <typename T>
  T pick(std::initializer_list<T> from) {
    return from.begin()[integer(0, static_cast<int>(from.size()) - 1)];
  }
  std::mt19937& engine() { return engine_; }

 private:
  uint32_t seed_;
  std::mt19937 engine_;
  ::testing::ScopedTrace trace_;
};

// A matrix whose surroundings and initial contents are a NaN that no kernel makes.
class GuardedMatrix {
 public:
  static constexpr int kMargin = 5;
  GuardedMatrix(int64_t rows, int64_t cols)
      : rows_(rows),
        cols_(cols),
        values_(static_cast<size_t>((rows + 2) * (cols + 2 * kMargin)), poison()) {}

  static float poison() { return std::bit_cast<float>(0x7fc12345u); }
  static bool is_poison(float v) { return std::bit_cast<uint32_t>(v) == 0x7fc12345u; }

  MatrixView view() {
    const int64_t stride = cols_ + 2 * kMargin;
    return {values_.data() + stride + kMargin, DType::kF32, rows_, cols_, stride};
  }
  void fill(const std::vector<float>& values) {
    for (int64_t r = 0; r < rows_; ++r) {
      std::copy_n(values.begin() + r * cols_, cols_, view().f32(r));
    }
  }
  // The contents; fails the test where something is unwritten, or written outside.
  std::vector<float> take() {
    std::vector<float> inside;
    const int64_t stride = cols_ + 2 * kMargin;
    int unwritten = 0, outside = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(values_.size()); ++i) {
      const int64_t r = i / stride - 1, c = i % stride - kMargin;
      const float v = values_[static_cast<size_t>(i)];
      if (r >= 0 && r < rows_ && c >= 0 && c < cols_) {
        unwritten += is_poison(v);
        inside.push_back(v);
      } else {
        outside += !is_poison(v);
      }
    }
    EXPECT_EQ(unwritten, 0);
    EXPECT_EQ(outside, 0);
    return inside;
  }

 private:
  int64_t rows_, cols_;
  std::vector<float> values_;
};

template <typename T>
double relative_l2(const std::vector<float>& got, const std::vector<T>& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size() && i < want.size(); ++i) {
    const double w = static_cast<double>(want[i]);
    error += (got[i] - w) * (got[i] - w);
    norm += w * w;
  }
  if (std::isnan(error)) return INFINITY;
  return error == 0 ? 0 : std::sqrt(error / norm);
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Random blocks of any format, with their exact values.
struct TestWeight {
  WeightSlice slice;
  std::vector<std::byte> bytes;
  std::vector<float> values;  // [rows][cols]

  TestWeight(const TestWeight&) = delete;
  TestWeight(Random& random, QuantFormat format, int64_t rows, int64_t cols, int64_t col_begin = 0,
             int64_t col_count = -1) {
    const int64_t stride = row_bytes(format, cols);
    bytes.resize(static_cast<size_t>(rows * stride));
    values.resize(static_cast<size_t>(rows * cols));
    for (std::byte& b : bytes) b = static_cast<std::byte>(random.engine()() & 255u);
    const QuantTraits& t = traits(format);
    const auto put_f16 = [&](size_t at, float v) {
      const uint16_t bits = format == QuantFormat::kBF16 ? f32_to_bf16(v) : f32_to_f16(v);
      std::memcpy(&bytes[at], &bits, 2);
    };
    // Every bit pattern is a valid integer; floating-point parts must be finite.
    for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(t.block_bytes)) {
      const float v = random.normal();
      switch (format) {
        case QuantFormat::kF32: std::memcpy(&bytes[at], &v, 4); break;
        case QuantFormat::kQ6_K: put_f16(at + 208, v * 1e-3f); break;
        case QuantFormat::kQ4_1: put_f16(at + 2, random.normal() * 0.1f); [[fallthrough]];
        case QuantFormat::kQ4_0:
        case QuantFormat::kQ8_0: put_f16(at, v * 1e-2f); break;
        default: put_f16(at, v); break;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      dequantize(format, bytes.data() + r * stride, cols, values.data() + r * cols);
    }
    slice = {format,
             rows,
             cols,
             col_begin,
             col_count < 0 ? cols : col_count,
             [this, stride](int64_t row) { return bytes.data() + row * stride; }};
  }
};

// Tests over instruction sets; those that the machine lacks are skipped with a message.
class IsaTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    try {
      backend(2);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  // A backend with its own threads; lives as long as the test.
  Backend& backend(int threads) {
    pools_.push_back(std::make_unique<ThreadPool>(threads));
    backends_.push_back(make_cpu_backend(*pools_.back(), GetParam()));
    return *backends_.back();
  }
  bool is_reference() const { return GetParam() == CpuIsa::kReference; }

  Random random_;

 private:
  std::vector<std::unique_ptr<ThreadPool>> pools_;
  std::vector<std::unique_ptr<Backend>> backends_;
};

inline std::string isa_name(const ::testing::TestParamInfo<CpuIsa>& info) {
  return to_string(info.param);
}

}  // namespace trireme::testing
