#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/linear_reference.h"

namespace trireme::testing {
namespace {

class LinearTest : public BackendTest {
 protected:
  // Relative L2 against float64. Plain formats: float32 sums. Quantized ones on a vector path:
  // activations of 15 bits, whose step is 1/16319 of a block's largest (or half of it, rounded).
  // All outputs of a row share its roundings, which weights of one sign add up: 4e-5 in the mean
  // square of a row with one block, and as normal as a sum of 32 roundings, so that few rows get
  // more room. On the GPU weights are elements and sums float32; `out` says how the sum is kept.
  double tolerance(QuantFormat format, DType out, int64_t m, int64_t n) const {
    if (rounds_to_bf16(format)) return bf16_rounding(m * n);
    if (on_gpu()) return out == DType::kF32 ? 2e-5 : of_element(5e-3);
    if (is_reference()) return 2e-7;
    if (is_plain(format) || is_e4m3(format)) return 3e-6;
    return 1.2e-4 * (1 + 1.5 / std::sqrt(static_cast<double>(m)));
  }
  double tolerance(QuantFormat format, int64_t m, int64_t n) const {
    return tolerance(format, activation(), m, n);
  }
  static std::vector<float> multiply(Backend& b, const Weight& w, const std::vector<float>& x,
                                     int64_t begin, int64_t count) {
    GuardedMatrix in(b, count, w.col_count, b.activation_dtype());
    GuardedMatrix out(b, count, w.rows, b.activation_dtype());
    in.fill({x.begin() + begin * w.col_count, x.begin() + (begin + count) * w.col_count});
    const LinearPart part{&w, nullptr, out.view(), false};
    b.linear(in.view(), {&part, 1});
    return out.take();
  }
};

// Up to 16 rows, up to 67, and more: a backend may have kernels of their own for each.
TEST_P(LinearTest, EveryFormatOddSizes) {
  Backend& b = backend(2);
  for (const QuantFormat format : kQuantFormats) {
    for (int round = 0; round < rounds(14); ++round) {
      const int block = traits(format).block_elements;
      const int64_t m = round < 4    ? round + 1
                        : round < 9  ? random_.integer(1, 40)
                        : round < 12 ? random_.integer(1, 67)
                                     : random_.integer(68, 300);
      const int64_t n = 2 * random_.integer(0, 70) + 1;
      const int64_t k = block == 1 ? width(1, 700) : block * random_.integer(1, 6);
      // Quantized slices may hold foreign columns at both ends.
      int64_t begin = 0, count = k;
      if (block > 1 && round % 2 == 1) {
        begin = random_.integer(0, block - 8);
        const int64_t behind = random_.integer(0, block - 1);
        count = std::max<int64_t>(1, k - begin - (k == block ? behind % (block - begin) : behind));
        if (on_gpu()) count = std::max<int64_t>(8, count / 8 * 8);
      }
      // float32: logits, or the residual stream, which is added to.
      const bool accumulate = round % 3 == 2;
      const DType dtype = accumulate || round % 5 == 4 ? DType::kF32 : activation();
      SCOPED_TRACE(fmt::format("{} m={} n={} k={} columns {}+{} to {}{}", traits(format).name, m, n,
                               k, begin, count, to_string(dtype), accumulate ? ", added" : ""));
      const TestWeight w(b, random_, format, n, k, begin, count);
      const Weight packed = b.make_weight(w.slice);
      EXPECT_EQ(packed.rows, n);
      EXPECT_EQ(packed.col_count, count);
      const auto x = activations(m * count);
      const auto bias = round % 3 != 0 ? random_.normals(n) : std::vector<float>{};
      const Buffer biases = b.upload(bias);
      auto want = expected_product(w, x, m, bias);
      GuardedMatrix in(b, m, count, activation()), out(b, m, n, dtype);
      in.fill(x);
      if (accumulate) {
        const auto before = random_.normals(m * n);
        out.fill(before);
        for (size_t i = 0; i < want.size(); ++i) want[i] += static_cast<double>(before[i]);
      }
      const LinearPart part{&packed, bias.empty() ? nullptr : biases.as<float>(), out.view(),
                            accumulate};
      b.linear(in.view(), {&part, 1});
      expect_close(product_error(out.take(), want, w, x, m), tolerance(format, dtype, m, n));
      EXPECT_TRUE(same_bits(in.take(), x));
    }
  }
}

TEST_P(LinearTest, PartsOfDifferentFormatsShareTheirInput) {
  Backend& b = backend(3);
  for (const int64_t m : {1, 5, 40}) {
    const int64_t k = 512;
    const auto x = activations(m * k);
    GuardedMatrix in(b, m, k, activation());
    in.fill(x);
    std::vector<std::unique_ptr<TestWeight>> weights;
    std::vector<Weight> packed;
    std::vector<GuardedMatrix> outs;
    for (const QuantFormat format : kQuantFormats) {
      const int64_t n = random_.integer(1, 90);
      weights.push_back(std::make_unique<TestWeight>(b, random_, format, n, k));
      packed.push_back(b.make_weight(weights.back()->slice));
      outs.emplace_back(b, m, n, activation());
    }
    std::vector<LinearPart> parts;
    for (size_t i = 0; i < packed.size(); ++i) {
      parts.push_back({&packed[i], nullptr, outs[i].view(), false});
    }
    b.linear(in.view(), parts);
    for (size_t i = 0; i < packed.size(); ++i) {
      SCOPED_TRACE(traits(packed[i].format).name);
      expect_close(
          product_error(outs[i].take(), expected_product(*weights[i], x, m), *weights[i], x, m),
          tolerance(weights[i]->slice.format, m, weights[i]->slice.rows));
    }
  }
}

// The same bits alone, in any batch (on the GPU: in a batch of up to 16), and with any number of
// threads.
TEST_P(LinearTest, RowsAreIndependent) {
  Backend& one = backend(1);
  std::vector<Backend*> others(3, &one);
  if (!on_gpu()) others = {&backend(2), &backend(3), &backend(5)};
  const int64_t same = on_gpu() ? 16 : 40;
  for (const QuantFormat format : kQuantFormats) {
    SCOPED_TRACE(traits(format).name);
    // Wide enough for several chunks of k, and of tokens in the last batch; odd where that may be.
    const int64_t n = is_reference() ? 17 : 77, all = 300;
    const int64_t k = is_plain(format) && !on_gpu() ? 1535 : 1536;
    const TestWeight w(one, random_, format, n, k);
    const Weight packed = one.make_weight(w.slice);
    const auto x = activations(all * k);
    std::vector<float> alone;
    for (int64_t i = 0; i < same; ++i) {
      const auto row = multiply(one, packed, x, i, 1);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    for (int64_t m = 1; m <= same; ++m) {
      Backend& b = m % 4 == 0 ? one : *others[static_cast<size_t>(m % 4 - 1)];
      const auto y = multiply(b, packed, x, 0, m);
      ASSERT_TRUE(same_bits(y, {alone.begin(), alone.begin() + m * n})) << m << " rows";
    }
    if (on_gpu()) continue;
    const auto y = multiply(*others[0], packed, x, 0, all);
    ASSERT_TRUE(same_bits({y.begin(), y.begin() + same * n}, alone));
    ASSERT_TRUE(same_bits({y.end() - n, y.end()}, multiply(one, packed, x, all - 1, 1)));
  }
}

// On CPU, whether weights are fetched ahead changes no bit.
TEST_P(LinearTest, FetchingAheadChangesNothing) {
  if (on_gpu()) GTEST_SKIP() << "the CPU backend's";
  ThreadPool pool(1);
  const char* old = std::getenv("TRIREME_CPU_PREFETCH");
  const std::string saved = old == nullptr ? "" : old;
  std::vector<std::unique_ptr<Backend>> ways;
  for (const char* way : {"0", "1"}) {
    setenv("TRIREME_CPU_PREFETCH", way, 1);
    ways.push_back(make_cpu_backend(pool, isa()));
  }
  setenv("TRIREME_CPU_PREFETCH", "perhaps", 1);
  EXPECT_THROW(make_cpu_backend(pool, CpuIsa::kReference), Error);
  setenv("TRIREME_CPU_PREFETCH", saved.c_str(), 1);
  for (const QuantFormat format : kQuantFormats) {
    SCOPED_TRACE(traits(format).name);
    const TestWeight w(*ways[0], random_, format, 77, 1536);
    const Weight packed = ways[0]->make_weight(w.slice);
    const auto x = activations(1536);
    EXPECT_TRUE(
        same_bits(multiply(*ways[0], packed, x, 0, 1), multiply(*ways[1], packed, x, 0, 1)));
  }
}

// On CPU, bf16 weights by activations that are bf16 already lose nothing but what sums round; and
// where the instruction set rounds activations, it does so to the nearest, and only then.
TEST_P(LinearTest, Bf16ByBf16IsExact) {
  if (on_gpu()) GTEST_SKIP() << "rounds to its element in any case";
  Backend& b = backend(2);
  const double sums = is_reference() ? 2e-7 : 3e-6;
  for (const int64_t m : {1, 2, 5, 11, 12, 13, 24, 40, 131}) {
    for (const int64_t k : {1, 2, 3, 31, 33, 64, 259, 1700}) {
      SCOPED_TRACE(fmt::format("m={} k={}", m, k));
      const int64_t n = random_.integer(1, 70);
      const TestWeight w(b, random_, QuantFormat::kBF16, n, k);
      const Weight packed = b.make_weight(w.slice);
      const auto x = random_.normals(m * k);
      const auto half = rounded(x, DType::kBF16);
      const auto want = expected_product(w, half, m);
      expect_close(product_error(multiply(b, packed, half, 0, m), want, w, half, m), sums);
      const auto other = product_error(multiply(b, packed, x, 0, m), want, w, half, m);
      if (rounds_to_bf16(QuantFormat::kBF16)) {
        expect_close(other, sums);
      } else if (m * n * k > 1000) {
        EXPECT_GT(other, 1e-4);
      }
    }
  }
}

TEST_P(LinearTest, LargeBatch) {
  Backend& b = backend(2);
  for (const QuantFormat format : kQuantFormats) {
    SCOPED_TRACE(traits(format).name);
    const int64_t m = is_reference() ? 60 : 611, n = 45, k = 2048;
    const TestWeight w(b, random_, format, n, k);
    const auto x = activations(m * k);
    const auto y = multiply(b, b.make_weight(w.slice), x, 0, m);
    expect_close(product_error(y, expected_product(w, x, m), w, x, m), tolerance(format, m, n));
  }
}

// Activations that the integer path must survive: zeros, huge and tiny values, outliers, and NaN.
// The largest integers of both sides, all of one sign, in every product: what is summed in 16 bits
// must not run over.
TEST_P(LinearTest, LargestProducts) {
  Backend& b = backend(1);
  for (const QuantFormat format : kQuantFormats) {
    if (is_plain(format) || is_e4m3(format)) continue;
    SCOPED_TRACE(traits(format).name);
    const int64_t n = 19, k = 512, most = 5;
    const TestWeight w(b, random_, format, n, k, 0, -1, true);
    const Weight packed = b.make_weight(w.slice);
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(static_cast<size_t>(most * k), sign);
      for (const int64_t m : {int64_t{1}, most}) {
        const auto y = multiply(b, packed, x, 0, m);
        EXPECT_LE(product_error(y, expected_product(w, x, m), w, x, m), tolerance(format, m, n));
      }
    }
  }
}

TEST_P(LinearTest, ExtremeActivations) {
  Backend& b = backend(1);
  for (const QuantFormat format : kQuantFormats) {
    SCOPED_TRACE(traits(format).name);
    const int64_t n = 19, k = 512;
    const TestWeight w(b, random_, format, n, k);
    const Weight packed = b.make_weight(w.slice);
    std::vector<float> x(static_cast<size_t>(k), 0.0f);
    EXPECT_EQ(multiply(b, packed, x, 0, 1), std::vector<float>(static_cast<size_t>(n), 0.0f));
    // f16 ends at 65504, and has fewer bits of what is below 6e-5.
    for (const float scale : {is_f16() ? 1e-4f : 1e-20f, is_f16() ? 5.0f : 1e20f}) {
      x = random_.normals(k, scale);
      x[static_cast<size_t>(random_.integer(0, 511))] = 300 * scale;
      x = rounded(std::move(x), activation());
      // The outlier makes its block's step coarse, and its own weights may be small.
      EXPECT_LE(relative_l2(multiply(b, packed, x, 0, 1), expected_product(w, x, 1)),
                5 * tolerance(format, 1, n));
    }
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      x = activations(k);
      x[static_cast<size_t>(random_.integer(0, 511))] = bad;
      int finite = 0;
      for (const float v : multiply(b, packed, x, 0, 1)) finite += std::isfinite(v);
      // A weight of exactly zero times infinity is NaN as well: nothing may stay finite.
      EXPECT_EQ(finite, 0);
    }
  }
}

// Columns in another order than x, with some that meet none of it.
TEST_P(LinearTest, ReordersColumns) {
  Backend& b = backend(2);
  for (const int64_t m : {1, 3, 20}) {
    const int64_t n = 37, k = 96, own = 88;
    TestWeight w(b, random_, QuantFormat::kI4x32, n, k);
    std::vector<int32_t> order(static_cast<size_t>(k), -1);
    std::iota(order.begin(), order.begin() + own, 0);
    std::shuffle(order.begin(), order.end(), random_.engine());
    w.slice.order = order;
    w.slice.col_count = own;
    const Weight packed = b.make_weight(w.slice);
    TestWeight in_order(b, random_, QuantFormat::kF32, n, own);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t j = 0; j < k; ++j) {
        const int32_t at = order[static_cast<size_t>(j)];
        if (at < 0) continue;
        in_order.values[static_cast<size_t>(r * own + at)] =
            w.values[static_cast<size_t>(r * k + j)];
      }
    }
    const auto x = activations(m * own);
    expect_close(product_error(multiply(b, packed, x, 0, m), expected_product(in_order, x, m),
                               in_order, x, m),
                 tolerance(QuantFormat::kI4x32, m, n));
  }
}

TEST_P(LinearTest, RefusesBadSlices) {
  Backend& b = backend(1);
  const auto refuse = [&](WeightSlice slice) {
    slice.row = [](int64_t, std::byte*) -> const std::byte* { return nullptr; };
    EXPECT_THROW(b.make_weight(slice), Error);
  };
  refuse({QuantFormat::kQ8_0, 4, 33, 0, 33, {}});
  refuse({QuantFormat::kQ6_K, 4, 128, 0, 128, {}});
  refuse({QuantFormat::kQ2_K, 4, 320, 0, 320, {}});
  refuse({QuantFormat::kIQ4_NL, 4, 48, 0, 48, {}});
  refuse({QuantFormat::kQ8_0, 4, 64, 40, 32, {}});
  refuse({QuantFormat::kQ8_0, 4, 64, -1, 32, {}});
  refuse({QuantFormat::kF32, 4, 64, 0, 32, {}});
  if (on_gpu()) {  // rows of whole 16 bytes
    refuse({QuantFormat::kF32, 4, 63, 0, 63, {}});
    refuse({QuantFormat::kBF16, 4, 4, 0, 4, {}});
    refuse({QuantFormat::kQ8_0, 4, 64, 3, 60, {}});
  }
  const Weight none = b.make_weight({QuantFormat::kF32, 0, 64, 0, 64, {}});
  EXPECT_TRUE(none.empty());
}

TRIREME_ON_CPU(LinearTest);
TRIREME_ON_GPU(LinearTest);

}  // namespace
}  // namespace trireme::testing
