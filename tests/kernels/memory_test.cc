// A backend's own memory: allocated, filled, read back, and refused.
#include "tests/kernels/testing.h"

namespace trireme::testing {
namespace {

class MemoryTest : public BackendTest {};

TEST_P(MemoryTest, UploadsComeBack) {
  Backend& b = backend(2);
  EXPECT_EQ(b.activation_dtype(), activation());
  EXPECT_NE(b.description().find(on_gpu() ? "cuda" : "cpu"), std::string::npos);
  for (const int count : {1, 7, 4096, 300001}) {
    const auto values = random_.normals(count);
    const Buffer buffer = b.upload(values);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    const MatrixView host = b.read_back(matrix_f32(buffer.as<float>(), 1, count));
    EXPECT_TRUE(same_bits({host.f32(), host.f32() + count}, values));
  }
  EXPECT_TRUE(b.upload({}).empty());
}

// Some columns of some rows: only those are given, whatever lies between.
TEST_P(MemoryTest, ReadsBackAPartOfAMatrix) {
  Backend& b = backend(1);
  for (int round = 0; round < 20; ++round) {
    const int64_t rows = random_.integer(1, 70), cols = random_.integer(1, 300);
    const auto values = random_.normals(rows * cols);
    const Buffer buffer = b.upload(values);
    const int64_t row = random_.integer(0, static_cast<int>(rows) - 1);
    const int64_t col = random_.integer(0, static_cast<int>(cols) - 1);
    const MatrixView part = matrix_f32(buffer.as<float>(), rows, cols)
                                .row_range(row, rows - row)
                                .col_range(col, cols - col);
    const MatrixView host = b.read_back(part);
    ASSERT_EQ(host.rows, rows - row);
    ASSERT_EQ(host.cols, cols - col);
    for (int64_t r = 0; r < host.rows; ++r) {
      for (int64_t c = 0; c < host.cols; ++c) {
        ASSERT_EQ(host.f32(r)[c], values[static_cast<size_t>((row + r) * cols + col + c)]);
      }
    }
  }
}

TEST_P(MemoryTest, FillsEveryByteAndNoOther) {
  Backend& b = backend(1);
  for (const DType dtype : {DType::kF32, activation()}) {
    for (const uint8_t value : {uint8_t{0}, uint8_t{0x3c}}) {
      const int64_t rows = random_.integer(1, 90), cols = random_.integer(1, 500);
      GuardedMatrix matrix(b, rows, cols, dtype);
      b.fill_bytes(matrix.view(), value);
      const std::vector<std::byte> element(4, static_cast<std::byte>(value));
      const float want = get_element(element.data(), dtype, 0);
      for (const float v : matrix.take()) ASSERT_EQ(v, want);
    }
  }
}

TEST_P(MemoryTest, RefusesWhatDoesNotFitAndGoesOn) {
  Backend& b = backend(1);
  const auto before = b.device_memory();
  EXPECT_EQ(before.has_value(), on_gpu());
  try {
    b.allocate(size_t{1} << 50);
    ADD_FAILURE() << "a petabyte was allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResourceExhausted) << error.what();
  }
  EXPECT_TRUE(b.allocate(0).empty());
  if (on_gpu()) {
    EXPECT_LE(before->free, before->total);
    const Buffer large = b.allocate(size_t{256} << 20);
    EXPECT_LE(b.device_memory()->free, before->free - (int64_t{255} << 20));
  }
  // The refusal is no error of later ops.
  GuardedMatrix matrix(b, 3, 40, activation());
  b.fill_bytes(matrix.view(), 0);
  b.synchronize();
  for (const float v : matrix.take()) EXPECT_EQ(v, 0.0f);
}

TEST_P(MemoryTest, StatesWhichCachesItCanHold) {
  Backend& b = backend(1);
  for (const int head_dim : {64, 80, 96, 128, 256}) {
    for (const DType dtype : kDTypes) {
      EXPECT_EQ(b.supports_kv({dtype, head_dim}), !on_gpu() || dtype == activation()) << head_dim;
    }
  }
  EXPECT_FALSE(b.supports_kv({kv_type(), 0}));
  if (on_gpu()) {
    EXPECT_FALSE(b.supports_kv({kv_type(), 100}));
    EXPECT_FALSE(b.supports_kv({kv_type(), 264}));
    EXPECT_FALSE(b.supports_kv({kv_type(), 128, 17}));
    EXPECT_FALSE(b.supports_kv({kv_type(), 128, 4, 12}));
  }
}

// A weight as large as the backend says, in one piece for slices that are made together.
TEST_P(MemoryTest, WeightsAreAsLargeAsStated) {
  Backend& b = backend(2);
  for (const QuantFormat format : kQuantFormats) {
    const int block = traits(format).block_elements;
    const int64_t cols = block == 1 ? width(1, 600) : 2 * block;
    const TestWeight first(b, random_, format, 48, cols), second(b, random_, format, 80, cols);
    const WeightSlice slices[] = {first.slice, second.slice};
    const auto weights = b.make_weights(slices);
    ASSERT_EQ(weights.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(weights[i].rows, slices[i].rows);
      EXPECT_GE(static_cast<int64_t>(weights[i].data.size()), b.weight_bytes(slices[i]));
      EXPECT_LE(static_cast<int64_t>(weights[i].data.size()), 2 * b.weight_bytes(slices[i]));
    }
  }
}

TRIREME_ON_CPU(MemoryTest);
TRIREME_ON_GPU(MemoryTest);

}  // namespace
}  // namespace trireme::testing
