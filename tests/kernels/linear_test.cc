#include <algorithm>
#include <cmath>

#include "tests/kernels/testing.h"

namespace trireme::testing {
namespace {

class LinearTest : public IsaTest {
 protected:
  // Relative L2 against float64. Plain formats: float32 sums. Quantized ones on a vector path:
  // activations of 15 bits, whose step is 1/16319 of a block's largest (or half of it, rounded).
  double tolerance(QuantFormat format) const {
    if (is_reference()) return 2e-7;
    return is_plain(format) ? 3e-6 : 1.2e-4;
  }
  static std::vector<double> expected(const TestWeight& w, const std::vector<float>& x, int64_t m,
                                      const std::vector<float>& bias) {
    const WeightSlice& s = w.slice;
    std::vector<double> y(static_cast<size_t>(m * s.rows));
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t n = 0; n < s.rows; ++n) {
        double sum = bias.empty() ? 0.0 : static_cast<double>(bias[static_cast<size_t>(n)]);
        for (int64_t k = 0; k < s.col_count; ++k) {
          sum += static_cast<double>(x[static_cast<size_t>(i * s.col_count + k)]) *
                 w.values[static_cast<size_t>(n * s.cols + s.col_begin + k)];
        }
        y[static_cast<size_t>(i * s.rows + n)] = sum;
      }
    }
    return y;
  }
  // ||got - want|| over the length of what the sums add up, or of `want` where that is longer: a
  // single output whose products cancel is no measure of the rounding of its terms.
  static double error(const std::vector<float>& got, const std::vector<double>& want,
                      const TestWeight& w, const std::vector<float>& x, int64_t m) {
    const WeightSlice& s = w.slice;
    double products = 0, length = 0, difference = 0;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t n = 0; n < s.rows; ++n) {
        for (int64_t k = 0; k < s.col_count; ++k) {
          const double product = static_cast<double>(x[static_cast<size_t>(i * s.col_count + k)]) *
                                 w.values[static_cast<size_t>(n * s.cols + s.col_begin + k)];
          products += product * product;
        }
      }
    }
    EXPECT_EQ(got.size(), want.size());
    for (size_t i = 0; i < std::min(got.size(), want.size()); ++i) {
      length += want[i] * want[i];
      difference += (got[i] - want[i]) * (got[i] - want[i]);
    }
    return std::sqrt(difference / std::max({products, length, 1e-30}));
  }
  static std::vector<float> multiply(Backend& b, const Weight& w, const std::vector<float>& x,
                                     int64_t begin, int64_t count) {
    GuardedMatrix in(count, w.col_count), out(count, w.rows);
    in.fill({x.begin() + begin * w.col_count, x.begin() + (begin + count) * w.col_count});
    const LinearPart part{&w, nullptr, out.view(), false};
    b.linear(in.view(), {&part, 1});
    return out.take();
  }
};

TEST_P(LinearTest, EveryFormatOddSizes) {
  Backend& b = backend(2);
  for (const QuantFormat format : kFormats) {
    for (int round = 0; round < 12; ++round) {
      const int block = traits(format).block_elements;
      const int64_t m = round < 4 ? round + 1 : random_.integer(1, 67);
      const int64_t n = 2 * random_.integer(0, 70) + 1;
      const int64_t k = block == 1 ? random_.integer(1, 700) : block * random_.integer(1, 6);
      // Quantized slices may hold foreign columns at both ends.
      const int64_t begin = block == 1 || round % 2 == 0 ? 0 : random_.integer(0, block - 1);
      const int64_t count =
          block == 1 || round % 2 == 0
              ? k
              : k - begin -
                    random_.integer(0, block - 1 - static_cast<int>(k == block ? begin : 0));
      SCOPED_TRACE(fmt::format("{} m={} n={} k={} columns {}+{}", traits(format).name, m, n, k,
                               begin, count));
      const TestWeight w(random_, format, n, k, begin, count);
      const Weight packed = b.make_weight(w.slice);
      const auto x = random_.normals(m * count);
      const auto bias = round % 3 == 1 ? random_.normals(n) : std::vector<float>{};
      auto want = expected(w, x, m, bias);
      GuardedMatrix in(m, count), out(m, n);
      in.fill(x);
      const bool accumulate = round % 3 == 2;
      if (accumulate) {
        const auto before = random_.normals(m * n);
        out.fill(before);
        for (size_t i = 0; i < want.size(); ++i) want[i] += static_cast<double>(before[i]);
      }
      const LinearPart part{&packed, bias.empty() ? nullptr : bias.data(), out.view(), accumulate};
      b.linear(in.view(), {&part, 1});
      EXPECT_LE(error(out.take(), want, w, x, m), tolerance(format));
    }
  }
}

TEST_P(LinearTest, PartsOfDifferentFormatsShareTheirInput) {
  Backend& b = backend(3);
  for (const int64_t m : {1, 5, 40}) {
    const int64_t k = 512;
    const auto x = random_.normals(m * k);
    GuardedMatrix in(m, k);
    in.fill(x);
    std::vector<std::unique_ptr<TestWeight>> weights;
    std::vector<Weight> packed;
    std::vector<GuardedMatrix> outs;
    for (const QuantFormat format : kFormats) {
      const int64_t n = random_.integer(1, 90);
      weights.push_back(std::make_unique<TestWeight>(random_, format, n, k));
      packed.push_back(b.make_weight(weights.back()->slice));
      outs.emplace_back(m, n);
    }
    std::vector<LinearPart> parts;
    for (size_t i = 0; i < packed.size(); ++i) {
      parts.push_back({&packed[i], nullptr, outs[i].view(), false});
    }
    b.linear(in.view(), parts);
    for (size_t i = 0; i < packed.size(); ++i) {
      SCOPED_TRACE(traits(packed[i].format).name);
      EXPECT_LE(error(outs[i].take(), expected(*weights[i], x, m, {}), *weights[i], x, m),
                tolerance(packed[i].format));
    }
  }
}

// The same bits alone, in any batch, and with any number of threads.
TEST_P(LinearTest, RowsAreIndependent) {
  Backend& one = backend(1);
  Backend* others[] = {&backend(2), &backend(3), &backend(5)};
  for (const QuantFormat format : kFormats) {
    SCOPED_TRACE(traits(format).name);
    // Wide enough for several chunks of k, and of tokens in the last batch.
    const int64_t n = is_reference() ? 17 : 77, k = 1536, all = 300;
    const TestWeight w(random_, format, n, k);
    const Weight packed = one.make_weight(w.slice);
    const auto x = random_.normals(all * k);
    std::vector<float> alone;
    for (int64_t i = 0; i < 40; ++i) {
      const auto row = multiply(one, packed, x, i, 1);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    for (int64_t m = 1; m <= 40; ++m) {
      Backend& b = m % 4 == 0 ? one : *others[m % 4 - 1];
      const auto y = multiply(b, packed, x, 0, m);
      ASSERT_TRUE(same_bits(y, {alone.begin(), alone.begin() + m * n})) << m << " rows";
    }
    const auto y = multiply(*others[0], packed, x, 0, all);
    ASSERT_TRUE(same_bits({y.begin(), y.begin() + 40 * n}, alone));
    ASSERT_TRUE(same_bits({y.end() - n, y.end()}, multiply(one, packed, x, all - 1, 1)));
  }
}

TEST_P(LinearTest, LargeBatch) {
  Backend& b = backend(2);
  for (const QuantFormat format : kFormats) {
    SCOPED_TRACE(traits(format).name);
    const int64_t m = is_reference() ? 60 : 611, n = 45, k = 2048;
    const TestWeight w(random_, format, n, k);
    const auto x = random_.normals(m * k);
    const auto y = multiply(b, b.make_weight(w.slice), x, 0, m);
    EXPECT_LE(error(y, expected(w, x, m, {}), w, x, m), tolerance(format));
  }
}

// Activations that the integer path must survive: zeros, huge and tiny values, outliers, and NaN.
TEST_P(LinearTest, ExtremeActivations) {
  Backend& b = backend(1);
  for (const QuantFormat format : kFormats) {
    SCOPED_TRACE(traits(format).name);
    const int64_t n = 19, k = 512;
    const TestWeight w(random_, format, n, k);
    const Weight packed = b.make_weight(w.slice);
    std::vector<float> x(static_cast<size_t>(k), 0.0f);
    EXPECT_EQ(multiply(b, packed, x, 0, 1), std::vector<float>(static_cast<size_t>(n), 0.0f));
    for (const float scale : {1e-20f, 1e20f}) {
      x = random_.normals(k, scale);
      x[static_cast<size_t>(random_.integer(0, 511))] = 300 * scale;
      // The outlier makes its block's step coarse, and its own weights may be small.
      EXPECT_LE(relative_l2(multiply(b, packed, x, 0, 1), expected(w, x, 1, {})),
                5 * tolerance(format));
    }
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      x = random_.normals(k);
      x[static_cast<size_t>(random_.integer(0, 511))] = bad;
      int finite = 0;
      for (const float v : multiply(b, packed, x, 0, 1)) finite += std::isfinite(v);
      // A weight of exactly zero times infinity is NaN as well: nothing may stay finite.
      EXPECT_EQ(finite, 0);
    }
  }
}

TEST_P(LinearTest, RefusesBadSlices) {
  Backend& b = backend(1);
  const auto refuse = [&](WeightSlice slice) {
    slice.row = [](int64_t) -> const std::byte* { return nullptr; };
    EXPECT_THROW(b.make_weight(slice), Error);
  };
  refuse({QuantFormat::kQ8_0, 4, 33, 0, 33, {}});
  refuse({QuantFormat::kQ6_K, 4, 128, 0, 128, {}});
  refuse({QuantFormat::kQ8_0, 4, 64, 40, 32, {}});
  refuse({QuantFormat::kQ8_0, 4, 64, -1, 32, {}});
  refuse({QuantFormat::kF32, 4, 64, 0, 32, {}});
  const Weight none = b.make_weight({QuantFormat::kF32, 0, 64, 0, 64, {}});
  EXPECT_TRUE(none.empty());
}

INSTANTIATE_TEST_SUITE_P(Cpu, LinearTest, ::testing::ValuesIn(kIsas), isa_name);

}  // namespace
}  // namespace trireme::testing
