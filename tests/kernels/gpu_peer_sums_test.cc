// Sums over tensor ranks by the backend's own kernels, all ranks on one GPU (support/gpu_ranks.h):
// against sums in the order of the ranks, bit for bit where nothing is rounded, the same bits on
// all ranks, many times over the same memory. Skipped (exit 77) without a GPU.
#include <cstdio>

#include "kernels/cuda/peer_lanes.h"
#include "tests/kernels/testing.h"
#include "tests/support/gpu_ranks.h"
#include "tests/support/relative_l2.h"

namespace trireme::testing {
namespace {

constexpr float kEps = 1e-5f;

// `dtype`: of 16 bits, as the next one's.
std::vector<std::byte> as_elements(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) put_element(bytes.data(), dtype, i, values[i]);
  return bytes;
}

std::vector<float> read_f32(Backend& b, const Buffer& from, size_t count) {
  const auto bytes = download_bytes(b, from);
  std::vector<float> values(count);
  std::memcpy(values.data(), bytes.data(), count * sizeof(float));
  return values;
}

std::vector<float> read_elements(Backend& b, const Buffer& from, size_t count, DType dtype) {
  const auto bytes = download_bytes(b, from);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = get_element(bytes.data(), dtype, i);
  return values;
}

// The terms' sum as the kernels make it: float32, in the order of the ranks.
std::vector<float> sum_in_order(const std::vector<std::vector<float>>& terms) {
  std::vector<float> sum(terms[0].size(), 0.0f);
  for (const auto& term : terms) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += term[i];
  }
  return sum;
}

struct Shape {
  int ranks;
  int64_t rows, cols;
  PeerShots shots;
  bool norm;
};

std::string describe(const Shape& shape) {
  return std::to_string(shape.ranks) + " ranks, [" + std::to_string(shape.rows) + "," +
         std::to_string(shape.cols) + "], " +
         (shape.shots == PeerShots::kOne ? "one shot" : "two shots") +
         (shape.norm ? "" : ", no norm");
}

// One fused sum on all ranks, from the same residual, as the ranks of a model have it.
class Fused {
 public:
  Fused(GpuRanks& ranks, const Shape& shape, Random& random)
      : ranks_(ranks),
        element_(ranks.backend(0).activation_dtype()),
        shape_(shape),
        count_(static_cast<size_t>(shape.rows * shape.cols)) {
    residual_ = random.normals(static_cast<int64_t>(count_));
    weight_ = random.normals(shape.cols);
    for (size_t r = 0; r < ranks.size(); ++r) {
      terms_.push_back(rounded(random.normals(static_cast<int64_t>(count_)), element_));
      Backend& b = ranks.backend(r);
      Memory memory;
      memory.residual = b.upload(residual_);
      memory.weight = b.upload(weight_);
      memory.delta = upload_bytes(b, as_elements(terms_.back(), element_));
      memory.out = upload_bytes(b, std::vector<std::byte>(count_ * 2 + 64, std::byte{0xff}));
      memory_.push_back(std::move(memory));
    }
  }

  void run() {
    for (size_t r = 0; r < ranks_.size(); ++r) queue(r);
    for (size_t r = 0; r < ranks_.size(); ++r) ranks_.backend(r).synchronize();
  }
  // A rank alone, from the beginning.
  void run_alone(size_t r) {
    memory_[r].residual = ranks_.backend(r).upload(residual_);
    queue(r);
    ranks_.backend(r).synchronize();
  }
  void queue(size_t r) {
    const Memory& m = memory_[r];
    const auto view = [&](const Buffer& buffer, DType dtype) {
      return MatrixView{buffer.data(), dtype, shape_.rows, shape_.cols, shape_.cols};
    };
    ranks_.sums(r).add_rms_norm(view(m.residual, DType::kF32), view(m.delta, element_),
                                shape_.norm ? m.weight.as<float>() : nullptr, kEps,
                                view(m.out, element_), shape_.shots);
  }

  // After `times` runs.
  void check(int times) {
    std::vector<float> sum = sum_in_order(terms_);
    if (shape_.shots == PeerShots::kTwo) sum = rounded(sum, element_);
    std::vector<float> expected = residual_;
    for (int i = 0; i < times; ++i) {
      for (size_t k = 0; k < count_; ++k) expected[k] += sum[k];
    }
    std::vector<float> normed(count_);
    for (int64_t row = 0; row < shape_.rows; ++row) {
      const float* x = expected.data() + row * shape_.cols;
      double squares = 0;
      for (int64_t c = 0; c < shape_.cols; ++c) squares += static_cast<double>(x[c]) * x[c];
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(shape_.cols) + kEps);
      for (int64_t c = 0; c < shape_.cols; ++c) {
        normed[static_cast<size_t>(row * shape_.cols + c)] =
            static_cast<float>(x[c] * inverse * weight_[static_cast<size_t>(c)]);
      }
    }
    std::vector<float> first;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      Backend& b = ranks_.backend(r);
      EXPECT_EQ(read_f32(b, memory_[r].residual, count_), expected) << "residual of rank " << r;
      const auto bytes = download_bytes(b, memory_[r].out);
      for (size_t i = count_ * 2; i < count_ * 2 + 64; ++i) ASSERT_EQ(bytes[i], std::byte{0xff});
      if (!shape_.norm) {
        for (size_t i = 0; i < count_ * 2; ++i) ASSERT_EQ(bytes[i], std::byte{0xff});
        continue;
      }
      const auto out = read_elements(b, memory_[r].out, count_, element_);
      if (r == 0) first = out;
      EXPECT_EQ(out, first) << "ranks 0 and " << r << " differ";
      EXPECT_LT(trireme::relative_l2(out, normed), element_ == DType::kF16 ? 3e-3 / 8 : 3e-3);
    }
  }

 private:
  struct Memory {
    Buffer residual, weight, delta, out;
  };
  GpuRanks& ranks_;
  DType element_;
  Shape shape_;
  size_t count_;
  std::vector<float> residual_, weight_;
  std::vector<std::vector<float>> terms_;
  std::vector<Memory> memory_;
};

// By the element of the backends.
class PeerSumsTest : public ::testing::TestWithParam<DType> {};

TEST_P(PeerSumsTest, SumAddAndNorm) {
  Random random;
  for (const int ranks : {2, 3, 4, 8}) {
    GpuRanks world(ranks, 16384, GetParam());
    for (const int64_t cols : {8, 64, 576, 4096, 5128, 8192, 16384}) {
      for (const int64_t rows : {1, 2, 64 / ranks / (cols > 4096 ? 4 : 1)}) {
        for (const PeerShots shots : {PeerShots::kOne, PeerShots::kTwo}) {
          const Shape shape{ranks, rows, cols, shots, random.chance(0.8)};
          SCOPED_TRACE(describe(shape));
          ASSERT_TRUE(world.sums(0).takes(rows, cols, GetParam()));
          Fused fused(world, shape, random);
          fused.run();
          fused.check(1);
        }
      }
    }
  }
}

// Lanes and slots are used again and again, with other sums in between, and from a graph.
TEST_P(PeerSumsTest, AgainAndAgain) {
  Random random;
  GpuRanks world(3, 4096, GetParam());
  for (int round = 0; round < 8; ++round) {
    const Shape shape{3, random.integer(1, 12), 8 * random.integer(1, 512),
                      random.pick({PeerShots::kOne, PeerShots::kTwo}), true};
    SCOPED_TRACE(describe(shape));
    Fused fused(world, shape, random);
    const int times = random.integer(1, 9);
    for (int i = 0; i < times; ++i) {
      // Late ranks find what the early ones have sent.
      for (const size_t r : {size_t{1}, size_t{2}, size_t{0}}) fused.queue(r);
    }
    for (size_t r = 0; r < world.size(); ++r) world.backend(r).synchronize();
    fused.check(times);
  }
  const Shape shape{3, 5, 1024, PeerShots::kOne, true};
  Fused fused(world, shape, random);
  constexpr int kTimes = 7;  // the first as it is, the second recorded, the others replayed
  for (int i = 0; i < kTimes; ++i) {
    for (size_t r = 0; r < world.size(); ++r) {
      world.backend(r).repeat({5, false}, [&] { fused.queue(r); });
    }
    for (size_t r = 0; r < world.size(); ++r) world.backend(r).synchronize();
  }
  fused.check(kTimes);
}

// One rank after the other, as a sanitizer runs kernels: nobody finds a peer that answers. An
// exchange is made three times, and waiting ends by itself: the first time a rank lacks the terms
// of those after it, the second time their sums, the third time nothing.
TEST_P(PeerSumsTest, RanksInTurns) {
  constexpr int64_t kWidth = 8192;
  const auto counters = static_cast<size_t>(cuda::epoch_bytes(kWidth * 2));
  Random random;
  for (const int ranks : {2, 3, 4}) {
    for (const int64_t cols : {64, 576, 5128}) {
      for (const PeerShots shots : {PeerShots::kOne, PeerShots::kTwo}) {
        const Shape shape{ranks, random.integer(1, 3), cols, shots, true};
        SCOPED_TRACE(describe(shape));
        GpuRanks world(ranks, kWidth, GetParam());
        world.end_waiting();
        Fused fused(world, shape, random);
        for (int time = 0; time < 3; ++time) {
          world.count_again(counters);
          for (size_t r = 0; r < world.size(); ++r) fused.run_alone(r);
        }
        fused.check(1);
      }
    }
  }
}

TEST_P(PeerSumsTest, PlainSums) {
  Random random;
  for (const int ranks : {2, 4, 7}) {
    GpuRanks world(ranks, 2048, GetParam());
    for (const DType dtype : {DType::kF32, GetParam()}) {
      for (const int64_t rows : {1, 3, 16 / ranks}) {
        for (const int64_t cols : {8, 1000, 2048}) {
          for (const PeerShots shots : {PeerShots::kOne, PeerShots::kTwo}) {
            const int blocks = random.pick({0, 1, 5, 16});
            SCOPED_TRACE(describe({ranks, rows, cols, shots, true}) + ", blocks " +
                         std::to_string(blocks) + ", dtype " +
                         std::to_string(static_cast<int>(dtype)));
            const auto count = static_cast<size_t>(rows * cols);
            std::vector<std::vector<float>> terms;
            std::vector<Buffer> memory;
            for (size_t r = 0; r < world.size(); ++r) {
              terms.push_back(rounded(random.normals(static_cast<int64_t>(count)), dtype));
              memory.push_back(
                  dtype == DType::kF32
                      ? world.backend(r).upload(terms.back())
                      : upload_bytes(world.backend(r), as_elements(terms.back(), dtype)));
            }
            for (size_t r = 0; r < world.size(); ++r) {
              world.sums(r).sum({memory[r].data(), dtype, rows, cols, cols}, shots, blocks);
            }
            const auto expected = rounded(sum_in_order(terms), dtype);
            for (size_t r = 0; r < world.size(); ++r) {
              Backend& b = world.backend(r);
              b.synchronize();
              EXPECT_EQ(dtype == DType::kF32 ? read_f32(b, memory[r], count)
                                             : read_elements(b, memory[r], count, dtype),
                        expected)
                  << "rank " << r;
            }
          }
        }
      }
    }
  }
}

TEST_P(PeerSumsTest, WhatIsNotTaken) {
  GpuRanks world(2, 1024, GetParam());
  EXPECT_FALSE(world.sums(0).takes(1, 2056, GetParam()));     // wider than a lane
  EXPECT_FALSE(world.sums(0).takes(1, 12, GetParam()));       // not whole vectors
  EXPECT_FALSE(world.sums(0).takes(1000, 1024, GetParam()));  // more rows than lanes
  EXPECT_FALSE(
      world.sums(0).takes(1, 1024, GetParam() == DType::kF16 ? DType::kBF16 : DType::kF16));
  EXPECT_TRUE(world.sums(0).takes(256, 1024, GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Elements, PeerSumsTest, ::testing::Values(DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(to_string(info.param)); });

}  // namespace
}  // namespace trireme::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (trireme::cuda_device_count() == 0) {
    std::printf("skipped: %s\n", trireme::cuda_unavailable().c_str());
    return 77;
  }
  return RUN_ALL_TESTS();
}
