#include <cfloat>

#include "kernels/cpu/isa.h"
#include "kernels/limits.h"
#include "tests/kernels/linear_reference.h"

namespace trireme::testing {
namespace {

class ElementwiseTest : public BackendTest {
 protected:
  double tolerance() const { return tolerance_or_rounded(is_reference() ? 2e-7 : 1e-6); }
  // What norms read and write: the residual stream, and rows of activations.
  GuardedMatrix residual(Backend& b, int64_t rows, int64_t cols) {
    return {b, rows, cols, DType::kF32, Margins::kAboveAndBelow};
  }
  GuardedMatrix normed(Backend& b, int64_t rows, int64_t cols) {
    return {b, rows, cols, activation(), Margins::kAboveAndBelow};
  }
};
class ElementwiseCpuTest : public ElementwiseTest {};

TEST_P(ElementwiseTest, RmsNorm) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(20); ++round) {
    const int rows = random_.integer(1, 67);
    const int cols = round == 0   ? 4096
                     : round == 1 ? 8 * random_.integer(1024, 4096)
                                  : width(1, round < 10 ? 700 : 3000);
    SCOPED_TRACE(fmt::format("[{}, {}]", rows, cols));
    const auto x = random_.normals(int64_t{rows} * cols, random_.pick({1e-3f, 3.0f, 1e3f}));
    const auto weight = random_.normals(cols);
    const Buffer weights = b.upload(weight);
    GuardedMatrix in = residual(b, rows, cols), out = normed(b, rows, cols);
    in.fill(x);
    b.rms_norm(in.view(), weights.as<float>(), 1e-5f, out.view());
    const auto y = out.take();
    // The float32 result is within a millionth: what is left is the rounding to the element, by
    // half a step at most, and so to one of two neighbours.
    expect_close(relative_l2(y, expected_norm(x, weight, 1e-5)),
                 on_gpu() ? of_element(2e-3) : tolerance());
    EXPECT_TRUE(same_bits(in.take(), x));
    if (!on_gpu()) {
      b.rms_norm(in.view(), weights.as<float>(), 1e-5f, in.view());  // in place
      EXPECT_TRUE(same_bits(in.take(), y));
    }
    GuardedMatrix last = residual(b, 1, cols), alone = normed(b, 1, cols);
    last.fill({x.end() - cols, x.end()});
    b.rms_norm(last.view(), weights.as<float>(), 1e-5f, alone.view());
    EXPECT_TRUE(same_bits(alone.take(), {y.end() - cols, y.end()}));
  }
}

TEST_P(ElementwiseTest, AddRmsNorm) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(12); ++round) {
    const int rows = random_.integer(1, 67), cols = width(1, round < 6 ? 900 : 5000);
    SCOPED_TRACE(fmt::format("[{}, {}]", rows, cols));
    const auto x = random_.normals(int64_t{rows} * cols);
    const auto delta = activations(int64_t{rows} * cols);
    const auto weight = random_.normals(cols);
    const Buffer weights = b.upload(weight);
    std::vector<float> sum(x.size());
    for (size_t i = 0; i < x.size(); ++i) sum[i] = x[i] + delta[i];
    GuardedMatrix stream = residual(b, rows, cols), out = normed(b, rows, cols);
    GuardedMatrix added(b, rows, cols, activation());
    stream.fill(x);
    added.fill(delta);
    b.add_rms_norm(stream.view(), added.view(), weights.as<float>(), 1e-6f, out.view());
    EXPECT_TRUE(same_bits(stream.take(), sum));
    EXPECT_TRUE(same_bits(added.take(), delta));
    expect_close(relative_l2(out.take(), expected_norm(sum, weight, 1e-6)),
                 on_gpu() ? of_element(2e-3) : tolerance());
    stream.fill(x);
    b.add_rms_norm(stream.view(), added.view(), nullptr, 0.0f, {});
    EXPECT_TRUE(same_bits(stream.take(), sum));
  }
}

// The norm of what is added comes before the addition.
TEST_P(ElementwiseTest, AddNormed) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(12); ++round) {
    const int rows = random_.integer(1, 67), cols = width(2, round < 6 ? 900 : 5000);
    SCOPED_TRACE(fmt::format("[{}, {}]", rows, cols));
    const auto x = random_.normals(int64_t{rows} * cols);
    const auto delta = activations(int64_t{rows} * cols, random_.pick({0.03f, 1.0f, 30.0f}));
    const auto delta_norm = random_.normals(cols), weight = random_.normals(cols);
    const Buffer delta_norms = b.upload(delta_norm), weights = b.upload(weight);
    auto want = expected_norm(delta, delta_norm, 1e-6);
    for (size_t i = 0; i < x.size(); ++i) want[i] += static_cast<double>(x[i]);
    for (const bool normed_too : {true, false}) {
      GuardedMatrix stream = residual(b, rows, cols), out = normed(b, rows, cols);
      GuardedMatrix added(b, rows, cols, activation());
      stream.fill(x);
      added.fill(delta);
      b.add_normed(stream.view(), added.view(), delta_norms.as<float>(),
                   normed_too ? weights.as<float>() : nullptr, 1e-6f, out.view());
      const auto sum = stream.take();
      expect_close(relative_l2(sum, want), 1e-6);
      added.look();
      if (!normed_too) continue;
      expect_close(relative_l2(out.take(), expected_norm(sum, weight, 1e-6)),
                   on_gpu() ? of_element(2e-3) : tolerance());
    }
  }
}

TEST_P(ElementwiseTest, GatedActivation) {
  Backend& b = backend(2);
  for (const Activation kind : {Activation::kSilu, Activation::kGeluTanh}) {
    for (int round = 0; round < rounds(10); ++round) {
      const int rows = random_.integer(1, 67), cols = width(1, round < 8 ? 900 : 9000);
      const auto gate = activations(int64_t{rows} * cols, round % 2 == 0 ? 1.0f : 40.0f);
      const auto up = activations(int64_t{rows} * cols);
      std::vector<double> want;
      for (size_t i = 0; i < gate.size(); ++i) {
        want.push_back(static_cast<double>(up[i]) *
                       expected_activation(static_cast<double>(gate[i]), kind));
      }
      GuardedMatrix g(b, rows, cols, activation()), u(b, rows, cols, activation()),
          out(b, rows, cols, activation());
      g.fill(gate);
      u.fill(up);
      b.gated_activation(g.view(), u.view(), kind, out.view());
      const auto y = out.take();
      expect_close(relative_l2(y, want), on_gpu() ? of_element(2e-3) : tolerance());
      b.gated_activation(g.view(), u.view(), kind, g.view());
      EXPECT_TRUE(same_bits(g.take(), y));
    }
  }
}

// Each value by itself, over the whole range: large magnitudes saturate, NaN stays NaN.
TEST_P(ElementwiseCpuTest, SiluPointwise) {
  Backend& b = backend(1);
  std::vector<float> x{0.0f, -0.0f, 88.0f, -88.0f, 100.0f, -100.0f, 1e30f, -1e30f, 1e-30f, NAN};
  for (float v = -90.0f; v < 90.0f; v += 0.0371f) x.push_back(v);
  const auto cols = static_cast<int64_t>(x.size());
  const DType f32 = DType::kF32;
  GuardedMatrix g(b, 1, cols, f32), u(b, 1, cols, f32), out(b, 1, cols, f32);
  g.fill(x);
  u.fill(std::vector<float>(x.size(), 1.0f));
  b.gated_activation(g.view(), u.view(), Activation::kSilu, out.view());
  const auto y = out.take();
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = static_cast<double>(x[i]) / (1 + std::exp(-static_cast<double>(x[i])));
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(y[i]));
    } else {
      EXPECT_NEAR(y[i], want, 4e-7 * std::abs(want) + 1e-36) << x[i];
    }
  }
}

// Exactly the rows as the backend keeps them: packing is a permutation in every format.
TEST_P(ElementwiseTest, EmbedReturnsExactRows) {
  Backend& b = backend(2);
  for (const QuantFormat format : kQuantFormats) {
    for (int round = 0; round < rounds(6); ++round) {
      const int block = traits(format).block_elements;
      const int64_t rows = random_.integer(1, 99);
      const int64_t cols = block == 1 ? width(1, 300) : block * random_.integer(1, 9);
      const int64_t begin =
          block > 1 && round % 2 == 1 ? random_.integer(0, block / 8 - 1) * (on_gpu() ? 8 : 7) : 0;
      const int64_t count = cols - begin;
      SCOPED_TRACE(fmt::format("{} [{}, {}] from {}", traits(format).name, rows, cols, begin));
      const TestWeight w(b, random_, format, rows, cols, begin, count);
      const Weight table = b.make_weight(w.slice);
      const int32_t vocab_begin = random_.integer(0, 1000);
      const float scale = round % 3 == 0 ? 1.0f : 7.5f;
      std::vector<int32_t> tokens;
      std::vector<float> want;
      for (int i = random_.integer(1, 200); i > 0; --i) {
        const int64_t row = random_.integer(-3, static_cast<int>(rows) + 3);
        tokens.push_back(static_cast<int32_t>(vocab_begin + row));
        for (int64_t c = 0; c < count; ++c) {
          want.push_back(row < 0 || row >= rows
                             ? 0.0f
                             : w.values[static_cast<size_t>(row * cols + begin + c)] * scale);
        }
      }
      GuardedMatrix out = residual(b, static_cast<int64_t>(tokens.size()), count);
      b.embed(tokens, table, vocab_begin, scale, out.view());
      const auto got = out.take();
      EXPECT_EQ(got, want);
    }
  }
}

TEST_P(ElementwiseTest, GatherRows) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(8); ++round) {
    const int rows = random_.integer(1, 40), cols = width(1, 2000);
    const auto x = random_.normals(int64_t{rows} * cols);
    std::vector<int32_t> indices;
    for (int i = random_.integer(1, 50); i > 0; --i)
      indices.push_back(random_.integer(0, rows - 1));
    GuardedMatrix in = residual(b, rows, cols);
    GuardedMatrix out = residual(b, static_cast<int64_t>(indices.size()), cols);
    in.fill(x);
    b.gather_rows(in.view(), indices, out.view());
    std::vector<float> want;
    for (const int32_t i : indices) {
      want.insert(want.end(), x.begin() + int64_t{i} * cols, x.begin() + int64_t{i + 1} * cols);
    }
    EXPECT_TRUE(same_bits(out.take(), want));
  }
}

// The vector conversions to KV types agree with base/dtype.h bit by bit.
TEST_P(ElementwiseCpuTest, ConversionsMatchScalar) {
  const cpu::Ops& ops = cpu::ops_of(isa());
  std::vector<float> x;
  for (uint32_t high = 0; high < 65536; ++high) {
    for (const uint32_t low : {0u, 0x7fffu, 0x8000u, 0x8001u, 0x1000u, 0x1001u, 0xffffu}) {
      x.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  x.push_back(1.5f);  // an odd length
  std::vector<uint16_t> half(x.size()), brain(x.size());
  ops.convert(x.data(), static_cast<int64_t>(x.size()), DType::kF16, half.data());
  ops.convert(x.data(), static_cast<int64_t>(x.size()), DType::kBF16, brain.data());
  int different = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      different += !std::isnan(f16_to_f32(half[i])) || !std::isnan(bf16_to_f32(brain[i]));
    } else {
      different += half[i] != f32_to_f16(x[i]) || brain[i] != f32_to_bf16(x[i]);
    }
  }
  EXPECT_EQ(different, 0);
}

TEST_P(ElementwiseCpuTest, DescribesItself) {
  EXPECT_NE(backend(3).description().find("3 threads"), std::string::npos);
  EXPECT_EQ(backend(1).activation_dtype(), DType::kF32);
}

// The tiles that products take, in every shape, and nothing behind them.
TEST_P(ElementwiseCpuTest, LaysOutActivations) {
  const cpu::Ops& ops = cpu::ops_of(isa());
  const int most = ops.linear(QuantFormat::kF32).tile_rows;
  for (int rows = 1; rows <= most; ++rows) {
    for (const int64_t cols : {1, 2, 7, 8, 15, 16, 17, 30, 32, 33, 64, 66, 101}) {
      SCOPED_TRACE(fmt::format("{} rows of {}", rows, cols));
      const int64_t stride = cols + 3;
      const auto x = random_.normals(rows * stride);
      const auto count = static_cast<size_t>(rows * cols);
      const auto at = [&](int64_t m, int64_t k) { return x[static_cast<size_t>(m * stride + k)]; };
      std::vector<float> wide(count + 16, -1.0f), want(count + 16, -1.0f);
      ops.tile_f32(x.data(), stride, rows, cols, wide.data());
      for (int64_t i = 0; i < rows * cols; ++i) {
        want[static_cast<size_t>(i)] = at(i % rows, i / rows);
      }
      EXPECT_EQ(wide, want);
      if (ops.tile_bf16 == nullptr || cols % 2 != 0) continue;
      std::vector<uint16_t> pairs(count + 32, 7), want_pairs(count + 32, 7);
      ops.tile_bf16(x.data(), stride, rows, cols, reinterpret_cast<std::byte*>(pairs.data()));
      for (int64_t i = 0; i < rows * cols; ++i) {
        want_pairs[static_cast<size_t>(i)] =
            f32_to_bf16(at(i / 2 % rows, i / 2 / rows * 2 + i % 2));
      }
      EXPECT_EQ(pairs, want_pairs);
    }
  }
}

// As base/dtype.h rounds, but for subnormal numbers, which the dot products take for zero.
TEST_P(ElementwiseCpuTest, Bf16TilesRoundToTheNearest) {
  const cpu::Ops& ops = cpu::ops_of(isa());
  if (ops.tile_bf16 == nullptr) GTEST_SKIP() << "has no tiles of bf16";
  std::vector<float> x;
  for (uint32_t high = 0; high < 65536; ++high) {
    for (const uint32_t low : {0u, 0x7fffu, 0x8000u, 0x8001u, 0x1000u, 0xffffu}) {
      x.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  std::vector<uint16_t> half(x.size());
  ops.tile_bf16(x.data(), 0, 1, static_cast<int64_t>(x.size()),
                reinterpret_cast<std::byte*>(half.data()));
  int different = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const float want = bf16_to_f32(f32_to_bf16(x[i])), got = bf16_to_f32(half[i]);
    if (std::isnan(x[i])) {
      different += !std::isnan(got);
    } else if (std::abs(x[i]) < FLT_MIN) {
      different += got != 0.0f;
    } else {
      different += got != want;
    }
  }
  EXPECT_EQ(different, 0);
}

TRIREME_ON_CPU(ElementwiseTest);
TRIREME_ON_GPU(ElementwiseTest);
TRIREME_ON_CPU(ElementwiseCpuTest);

TEST(CpuIsa, EnvironmentNamesAnother) {
  const char* old = std::getenv("TRIREME_CPU_ISA");
  const std::string saved = old == nullptr ? "" : old;
  setenv("TRIREME_CPU_ISA", "reference", 1);
  EXPECT_EQ(best_cpu_isa(), CpuIsa::kReference);
  for (const CpuIsa isa : kCpuIsas) {
    EXPECT_EQ(cpu_isa_of(to_string(isa)), isa);
    setenv("TRIREME_CPU_ISA", to_string(isa), 1);
    if (cpu::machine_has(isa)) {
      EXPECT_EQ(best_cpu_isa(), isa);
    } else {
      EXPECT_THROW(best_cpu_isa(), Error);
    }
  }
  setenv("TRIREME_CPU_ISA", "pentium", 1);
  EXPECT_THROW(best_cpu_isa(), Error);
  setenv("TRIREME_CPU_ISA", saved.c_str(), 1);
}

TEST(Limits, AreMeasured) {
  ThreadPool pool(2);
  EXPECT_GT(measure_read_bandwidth(pool), 1e8);
  EXPECT_GT(measure_flops(pool, best_cpu_isa()), 1e8);
  EXPECT_GT(measure_flops(pool, best_cpu_isa(), QuantFormat::kQ8_0), 1e8);
  EXPECT_GT(measure_flops(pool, best_cpu_isa(), QuantFormat::kBF16), 1e8);
}

TEST(Quant, RowBytes) {
  EXPECT_EQ(row_bytes(QuantFormat::kQ4_1, 64), 40);
  EXPECT_EQ(row_bytes(QuantFormat::kQ6_K, 512), 420);
  EXPECT_EQ(row_bytes(QuantFormat::kBF16, 7), 14);
  EXPECT_THROW(row_bytes(QuantFormat::kQ8_0, 33), Error);
  EXPECT_THROW(row_bytes(QuantFormat::kQ8_0, -32), Error);
}

// Values worked out by hand from the formats' definitions.
TEST(Quant, DequantizesKnownBlocks) {
  std::byte block[210] = {};
  float out[256];
  const auto put = [&](int at, std::initializer_list<int> bytes) {
    for (const int b : bytes) block[at++] = static_cast<std::byte>(b);
  };
  put(0, {0x00, 0x38, 0x80, 0xff, 0x7f});  // d = 0.5; q = -128, -1, 127
  dequantize(QuantFormat::kQ8_0, block, 32, out);
  EXPECT_EQ(out[0], -64.0f);
  EXPECT_EQ(out[1], -0.5f);
  EXPECT_EQ(out[2], 63.5f);
  put(2, {0xf0});  // element 0 is 0, element 16 is 15
  dequantize(QuantFormat::kQ4_0, block, 32, out);
  EXPECT_EQ(out[0], -4.0f);
  EXPECT_EQ(out[16], 3.5f);
  put(2, {0x00, 0xbc, 0xf3});  // m = -1
  dequantize(QuantFormat::kQ4_1, block, 32, out);
  EXPECT_EQ(out[0], 0.5f);
  EXPECT_EQ(out[16], 6.5f);
  std::memset(block, 0, sizeof block);
  put(0, {0x21});                      // low bits: element 0 = 1, element 64 = 2
  put(32, {0x43});                     // element 32 = 3, element 96 = 4
  put(128, {0b11100100});              // high bits of elements 0, 32, 64, 96 = 0, 1, 2, 3
  put(192, {1, 0, 0xff, 0, 2, 0, 3});  // scales of elements 0.., 32.., 64.., 96..
  put(208, {0x00, 0x3c});              // d = 1
  dequantize(QuantFormat::kQ6_K, block, 256, out);
  EXPECT_EQ(out[0], 1.0f - 32.0f);
  EXPECT_EQ(out[32], -(16.0f + 3.0f - 32.0f));
  EXPECT_EQ(out[64], 2.0f * (32.0f + 2.0f - 32.0f));
  EXPECT_EQ(out[96], 3.0f * (48.0f + 4.0f - 32.0f));
}

class KnownBlock {
 public:
  KnownBlock& put(int at, std::initializer_list<int> bytes) {
    for (const int b : bytes) block_[at++] = static_cast<std::byte>(b);
    return *this;
  }
  std::vector<float> read(QuantFormat format) const {
    std::vector<float> out(static_cast<size_t>(traits(format).block_elements));
    dequantize(format, block_, static_cast<int64_t>(out.size()), out.data());
    return out;
  }

 private:
  std::byte block_[256] = {};
};

TEST(Quant, DequantizesFiveBitsAndTables) {
  KnownBlock q5_0;  // d = 0.5; elements 1 and 16 have their fifth bit; nibbles 1: 3, 16: 2
  q5_0.put(0, {0x00, 0x38, 0x02, 0x00, 0x01, 0x00}).put(6, {0x20, 0x03});
  auto out = q5_0.read(QuantFormat::kQ5_0);
  EXPECT_EQ(out[0], -8.0f);
  EXPECT_EQ(out[1], 0.5f * (16 + 3 - 16));
  EXPECT_EQ(out[16], 0.5f * (16 + 2 - 16));
  KnownBlock q5_1;  // d = 0.5, m = -1; element 31 has its fifth bit and nibble 15
  q5_1.put(0, {0x00, 0x38, 0x00, 0xbc, 0x00, 0x00, 0x00, 0x80}).put(23, {0xf1});
  out = q5_1.read(QuantFormat::kQ5_1);
  EXPECT_EQ(out[0], -1.0f);
  EXPECT_EQ(out[15], -0.5f);
  EXPECT_EQ(out[31], 0.5f * 31 - 1.0f);
  KnownBlock iq4;  // d = 2
  iq4.put(0, {0x00, 0x40, 0xf0, 0x78});
  out = iq4.read(QuantFormat::kIQ4_NL);
  EXPECT_EQ(out[0], -254.0f);
  EXPECT_EQ(out[16], 226.0f);
  EXPECT_EQ(out[1], 2.0f);
  EXPECT_EQ(out[17], -20.0f);
}

TEST(Quant, DequantizesKBlocks) {
  KnownBlock q2;  // d = 1, m = 2; elements 16..31: scale 3, minimum 5; 128..143: scale 15
  q2.put(80, {0x00, 0x3c, 0x00, 0x40}).put(1, {0x53}).put(8, {0x0f});
  q2.put(16 + 17, {0b11}).put(16 + 32, {0b10});  // elements 17: 3; 128: 2
  auto out = q2.read(QuantFormat::kQ2_K);
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_EQ(out[16], -10.0f);
  EXPECT_EQ(out[17], 9.0f - 10.0f);
  EXPECT_EQ(out[128], 30.0f);
  KnownBlock q3;                              // d = 1; scales are all -32 but where set
  q3.put(108, {0x00, 0x3c}).put(96, {0x21});  // low bits: scale 0: 1, scale 8: 2
  q3.put(104, {0b00100011});                  // high bits: scale 0: 3, scale 8: 2
  q3.put(0, {0b00010001}).put(32, {0b01}).put(64, {0b10});  // q of 0: 5, of 128: 6
  out = q3.read(QuantFormat::kQ3_K);
  EXPECT_EQ(out[0], (49.0f - 32.0f) * (5.0f - 4.0f));
  EXPECT_EQ(out[128], (34.0f - 32.0f) * (6.0f - 4.0f));
  EXPECT_EQ(out[16], -32.0f * -4.0f);
  KnownBlock q4;  // d = 1, m = 0.5
  q4.put(0, {0x00, 0x3c, 0x00, 0x38});
  // scale 1: 5, minimum 1: 6; scale 4: 0b10'0111, minimum 4: 0b01'0011
  q4.put(4, {0x80, 5}).put(8, {0x40, 6}).put(12, {0x37});
  q4.put(16, {0xa0}).put(16 + 64, {0x04});  // elements 32: 10; 128: 4
  out = q4.read(QuantFormat::kQ4_K);
  EXPECT_EQ(out[32], 5.0f * 10.0f - 0.5f * 6.0f);
  EXPECT_EQ(out[128], 39.0f * 4.0f - 0.5f * 19.0f);
  KnownBlock q5 = q4;
  q5.put(16, {0b00010010}).put(48, {0xa0}).put(48 + 32, {0}).put(48 + 64, {0x04});
  out = q5.read(QuantFormat::kQ5_K);
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_EQ(out[32], 5.0f * 26.0f - 0.5f * 6.0f);
  EXPECT_EQ(out[128], 39.0f * 20.0f - 0.5f * 19.0f);
}

}  // namespace
}  // namespace trireme::testing
