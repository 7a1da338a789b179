// What the kernel tests share: backends, seeds, random weights, matrices with poisoned surroundings
// in the backend's memory, errors.
//
// One body runs on every backend. On the GPU inputs and weights are first rounded to its element
// (bf16 or f16), so that the float64 reference sees what the kernel sees and only the kernel's own
// error is measured.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "kernels/backend.h"
#include "kernels/cuda_module.h"

namespace trireme::testing {

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

// `values` as the type keeps them.
inline std::vector<float> rounded(std::vector<float> values, DType dtype) {
  if (dtype == DType::kF32) return values;
  for (float& v : values) {
    v = dtype == DType::kF16 ? f16_to_f32(f32_to_f16(v)) : bf16_to_f32(f32_to_bf16(v));
  }
  return values;
}

inline bool is_device(const Backend& b) { return b.stream() != nullptr; }

// Bytes in the backend's own memory, in the order of its ops.
inline Buffer upload_bytes(Backend& b, const std::vector<std::byte>& bytes) {
  std::vector<float> words((bytes.size() + 3) / 4);
  if (!bytes.empty()) std::memcpy(words.data(), bytes.data(), bytes.size());
  return b.upload(words);
}
inline std::vector<std::byte> download_bytes(Backend& b, const Buffer& from) {
  const auto words = static_cast<int64_t>(from.size() / 4);
  const MatrixView host = b.read_back(matrix_f32(from.as<float>(), 1, words));
  const auto* data = static_cast<const std::byte*>(host.data);
  return {data, data + words * 4};
}

// What a byte of unwritten memory is: a NaN that no kernel makes, in every type.
constexpr std::byte kPoison{0xff};

// Elements of bytes, in any type.
inline float get_element(const std::byte* bytes, DType dtype, size_t i) {
  if (dtype == DType::kF32) {
    float v;
    std::memcpy(&v, bytes + 4 * i, 4);
    return v;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * i, 2);
  return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}
inline void put_element(std::byte* bytes, DType dtype, size_t i, float v) {
  if (dtype == DType::kF32) {
    std::memcpy(bytes + 4 * i, &v, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? f32_to_f16(v) : f32_to_bf16(v);
  std::memcpy(bytes + 2 * i, &bits, 2);
}

// Where a guarded matrix has room that no op may touch. The GPU wants the rows of the residual
// stream, of norms and of attention's output next to each other; the CPU has margins anyway.
enum class Margins : uint8_t { kAround, kAboveAndBelow };

// A matrix in the backend's memory whose surroundings and initial contents are poison. On a device
// margins are multiples of 8 elements and row 0 is aligned to 16 bytes.
class GuardedMatrix {
 public:
  GuardedMatrix(Backend& b, int64_t rows, int64_t cols, DType dtype,
                Margins margins = Margins::kAround)
      : backend_(&b), rows_(rows), cols_(cols), dtype_(dtype) {
    const bool around = margins == Margins::kAround || !is_device(b);
    const int64_t margin = is_device(b) ? 8 : 5;
    stride_ = around ? cols + 2 * margin : cols;
    lead_ = stride_ + margin;
    if (is_device(b)) lead_ = (lead_ + 7) / 8 * 8;
    host_.assign(static_cast<size_t>(lead_ + (rows + 1) * stride_ + margin) * size_of(dtype),
                 kPoison);
    storage_ = upload_bytes(b, host_);
  }

  // Valid until the next fill().
  MatrixView view() const {
    return {storage_.data() + static_cast<size_t>(lead_) * size_of(dtype_), dtype_, rows_, cols_,
            stride_};
  }
  // In the matrix's own type; `values` should be what that type can hold.
  void fill(const std::vector<float>& values) {
    for (int64_t i = 0; i < rows_ * cols_; ++i) {
      put_element(host_.data(), dtype_, place(i), values[static_cast<size_t>(i)]);
    }
    storage_ = upload_bytes(*backend_, host_);
  }
  // All of it again, at the same address.
  void poison() {
    const auto words = static_cast<int64_t>(storage_.size() / 4);
    backend_->fill_bytes(matrix_f32(storage_.as<float>(), 1, words), 0xff);
  }
  // The contents; fails the test where something is unwritten, or written outside.
  std::vector<float> take() {
    std::vector<float> inside = look();
    EXPECT_EQ(unwritten_, 0) << "elements were not written";
    return inside;
  }
  // The contents, some of which may be unwritten.
  std::vector<float> look() {
    const auto bytes = download_bytes(*backend_, storage_);
    const size_t size = size_of(dtype_);
    std::vector<bool> is_inside(bytes.size() / size, false);
    std::vector<float> inside;
    unwritten_ = 0;
    int outside = 0;
    for (int64_t i = 0; i < rows_ * cols_; ++i) {
      inside.push_back(get_element(bytes.data(), dtype_, place(i)));
      is_inside[place(i)] = true;
      unwritten_ += is_poison(bytes, place(i));
    }
    for (size_t i = 0; i < is_inside.size(); ++i) outside += !is_inside[i] && !is_poison(bytes, i);
    EXPECT_EQ(outside, 0) << "elements around the matrix were written";
    return inside;
  }

 private:
  size_t place(int64_t i) const {
    return static_cast<size_t>(lead_ + i / cols_ * stride_ + i % cols_);
  }
  // Past the array's end an upload is padded with zeros: those are not asked for.
  bool is_poison(const std::vector<std::byte>& bytes, size_t i) const {
    const size_t size = size_of(dtype_);
    for (size_t b = i * size; b < (i + 1) * size && b < host_.size(); ++b) {
      if (bytes[b] != kPoison) return false;
    }
    return true;
  }

  Backend* backend_;
  int64_t rows_, cols_, stride_ = 0;
  int64_t lead_ = 0;  // elements before row 0
  DType dtype_;
  int unwritten_ = 0;
  std::vector<std::byte> host_;
  Buffer storage_;
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
  // values are as `b` keeps them: exactly, or rounded to its element. largest: every integer has
  // all its bits.
  TestWeight(const Backend& b, Random& random, QuantFormat format, int64_t rows, int64_t cols,
             int64_t col_begin = 0, int64_t col_count = -1, bool largest = false) {
    const int64_t stride = row_bytes(format, cols);
    bytes.resize(static_cast<size_t>(rows * stride));
    values.resize(static_cast<size_t>(rows * cols));
    for (std::byte& b : bytes) {
      b = static_cast<std::byte>(largest ? 255u : random.engine()() & 255u);
      // e4m3's NaN, which no file may hold.
      if (is_e4m3(format) && (b & std::byte{0x7f}) == std::byte{0x7f}) b ^= std::byte{1};
    }
    const QuantTraits& t = traits(format);
    // Every bit pattern is a valid integer; floating-point parts must be finite. `spread`: about
    // the largest integer that a block's scale is multiplied with.
    const float spread = t.block_elements == 1 ? 1.0f : t.block_elements == 32 ? 1e2f : 1e3f;
    for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(t.block_bytes)) {
      const auto put = [&](int offset, float v) {
        std::byte* to = &bytes[at + static_cast<size_t>(offset)];
        if (t.wide_scale) {
          std::memcpy(to, &v, 4);
          return;
        }
        const uint16_t bits = format == QuantFormat::kBF16 ? f32_to_bf16(v) : f32_to_f16(v);
        std::memcpy(to, &bits, 2);
      };
      put(t.scale_at, random.normal() / spread);
      if (t.min_at >= 0) put(t.min_at, random.normal() * (t.block_elements == 32 ? 0.1f : 1e-2f));
    }
    for (int64_t r = 0; r < rows; ++r) {
      dequantize(format, bytes.data() + r * stride, cols, values.data() + r * cols);
    }
    values = rounded(std::move(values), b.activation_dtype());
    slice = {format,
             rows,
             cols,
             col_begin,
             col_count < 0 ? cols : col_count,
             [this, stride](int64_t row, std::byte*) { return bytes.data() + row * stride; }};
  }
};

// Which backends a test body runs on: the CPU's instruction sets, and the GPU.
inline const std::vector<std::string> kCpuBackends{"reference", "avx2", "avx512", "avx512_bf16"};
inline const std::vector<std::string> kGpuBackends{"cuda_bf16", "cuda_f16"};

// Tests over backends; those that the machine lacks are skipped with a message.
class BackendTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (on_gpu()) {
      if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU: " << cuda_unavailable();
      return;
    }
    try {
      backend(2);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  void TearDown() override {
    if (worst_ > 0 && on_gpu()) std::printf("  worst error: %.2f of its tolerance\n", worst_);
  }

  bool on_gpu() const { return GetParam().starts_with("cuda"); }
  bool is_f16() const { return GetParam() == "cuda_f16"; }
  bool is_reference() const { return GetParam() == "reference"; }
  CpuIsa isa() const {
    std::string name = GetParam();
    std::replace(name.begin(), name.end(), '_', '-');
    return cpu_isa_of(name).value();
  }
  // Whether products of such weights take activations rounded to bf16 (docs/adr/0021).
  bool rounds_to_bf16(QuantFormat weights) const {
    return GetParam() == "avx512_bf16" && weights == QuantFormat::kBF16;
  }
  // A bound for what that costs `outputs` sums, over the length of their products. A rounding is at
  // most 2^-8 of its value, and independent of the others and of the weights' signs: so is the root
  // mean square of many outputs. One alone exceeds 6 times that once in 10^7 (Hoeffding).
  static double bf16_rounding(int64_t outputs) {
    return 0x1p-8 * (1 + 5 / std::sqrt(static_cast<double>(outputs)));
  }
  // A backend with its own threads; lives as long as the test.
  Backend& backend(int threads) {
    pools_.push_back(std::make_unique<ThreadPool>(threads));
    backends_.push_back(on_gpu() ? make_cuda_backend(*pools_.back(), 0, activation())
                                 : make_cpu_backend(*pools_.back(), isa()));
    return *backends_.back();
  }
  // TRIREME_TEST_BRIEF=1 runs a quarter of the rounds: for compute-sanitizer.
  static int rounds(int count) {
    const char* brief = std::getenv("TRIREME_TEST_BRIEF");
    return brief == nullptr || std::string(brief) == "0" ? count : std::max(1, count / 4);
  }
  DType activation() const {
    return is_f16() ? DType::kF16 : on_gpu() ? DType::kBF16 : DType::kF32;
  }
  // Of a KV cache on this backend, where the test has no choice of its own.
  DType kv_type() const { return is_f16() ? DType::kF16 : DType::kBF16; }
  // Random values that the activation type holds exactly.
  std::vector<float> activations(int64_t count, float scale = 1.0f) {
    return rounded(random_.normals(count, scale), activation());
  }
  // A width that the backend takes: any, or a multiple of 8.
  int width(int low, int high) {
    const int cols = random_.integer(low, high);
    return on_gpu() ? (cols + 7) / 8 * 8 : cols;
  }
  // A bound for what the GPU rounds to its element, given for bf16: half a step of bf16 is up to
  // 2^-8 of a value and of f16 2^-11, so an eighth.
  double of_element(double bf16) const { return is_f16() ? bf16 / 8 : bf16; }
  // The bound for a result that the op rounds to the activation type, perhaps twice.
  double tolerance_or_rounded(double float32) const {
    return on_gpu() ? of_element(5e-3) : float32;
  }
  void expect_close(double error, double tolerance) {
    EXPECT_LE(error, tolerance);
    worst_ = std::max(worst_, error / tolerance);
  }

  Random random_;

 private:
  std::vector<std::unique_ptr<ThreadPool>> pools_;
  std::vector<std::unique_ptr<Backend>> backends_;
  double worst_ = 0;
};

inline std::string backend_name(const ::testing::TestParamInfo<std::string>& info) {
  return info.param;
}

}  // namespace trireme::testing

// `Suite` on the CPU (every instruction set) and on the GPU.
#define TRIREME_ON_CPU(Suite)                                                                 \
  INSTANTIATE_TEST_SUITE_P(Cpu, Suite, ::testing::ValuesIn(::trireme::testing::kCpuBackends), \
                           ::trireme::testing::backend_name)
#define TRIREME_ON_GPU(Suite)                                                                 \
  INSTANTIATE_TEST_SUITE_P(Gpu, Suite, ::testing::ValuesIn(::trireme::testing::kGpuBackends), \
                           ::trireme::testing::backend_name)
