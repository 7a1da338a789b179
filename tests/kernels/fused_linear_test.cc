// Products with something before or behind them, and several in one: what a backend may fuse.
#include <algorithm>
#include <array>
#include <numeric>

#include "tests/kernels/linear_reference.h"

namespace trireme::testing {
namespace {

class FusedLinearTest : public BackendTest {
 protected:
  static constexpr float kEps = 1e-5f;

  // Weights that share x, made in one go. Their biases lie next to each other, as their outputs do:
  // the columns of one matrix.
  struct Parts {
    std::vector<std::unique_ptr<TestWeight>> sources;
    std::vector<Weight> packed;
    std::vector<std::vector<float>> biases;  // empty: none
    Buffer uploaded;
    std::vector<int64_t> begins;  // first column of each
    int64_t cols = 0;

    std::vector<LinearPart> into(MatrixView out, bool accumulate = false) const {
      std::vector<LinearPart> parts;
      for (size_t i = 0; i < packed.size(); ++i) {
        const float* bias = biases[i].empty() ? nullptr : uploaded.as<float>() + begins[i];
        parts.push_back({&packed[i], bias, out.col_range(begins[i], packed[i].rows), accumulate});
      }
      return parts;
    }
    // The part's columns of `y`.
    std::vector<float> columns(const std::vector<float>& y, size_t part, int64_t m) const {
      std::vector<float> out;
      for (int64_t r = 0; r < m; ++r) {
        const auto from = y.begin() + r * cols + begins[part];
        out.insert(out.end(), from, from + packed[part].rows);
      }
      return out;
    }
  };

  Parts make_parts(Backend& b, const std::vector<int64_t>& rows, int64_t k, double biased) {
    Parts parts;
    std::vector<WeightSlice> slices;
    std::vector<float> all_biases;
    for (const int64_t n : rows) {
      const QuantFormat format =
          random_.pick({QuantFormat::kF32, QuantFormat::kBF16, QuantFormat::kF16});
      parts.sources.push_back(std::make_unique<TestWeight>(b, random_, format, n, k));
      slices.push_back(parts.sources.back()->slice);
      const auto bias = random_.normals(n);
      all_biases.insert(all_biases.end(), bias.begin(), bias.end());
      parts.biases.push_back(random_.chance(biased) ? bias : std::vector<float>{});
      parts.begins.push_back(parts.cols);
      parts.cols += n;
    }
    parts.uploaded = b.upload(all_biases);
    parts.packed = b.make_weights(slices);
    EXPECT_EQ(parts.packed.size(), slices.size());
    return parts;
  }

  void check(const Parts& parts, const std::vector<float>& y, const std::vector<float>& before,
             const std::vector<float>& x, int64_t m, double tolerance) {
    for (size_t i = 0; i < parts.packed.size(); ++i) {
      auto want = expected_product(*parts.sources[i], x, m, parts.biases[i]);
      if (!before.empty()) {
        const auto had = parts.columns(before, i, m);
        for (size_t e = 0; e < want.size(); ++e) want[e] += static_cast<double>(had[e]);
      }
      SCOPED_TRACE(fmt::format("part {} of {}", i, parts.packed.size()));
      const WeightSlice& s = parts.sources[i]->slice;
      expect_close(product_error(parts.columns(y, i, m), want, *parts.sources[i], x, m),
                   rounds_to_bf16(s.format) ? bf16_rounding(m * s.rows) : tolerance);
    }
  }

  double sum_tolerance(DType out) const {
    if (!on_gpu()) return 3e-6;
    return out == DType::kF32 ? 2e-5 : of_element(5e-3);
  }
};

// Neighbouring parts of equal width may become one product; with all their biases, some, or none;
// into the activations, or added to the residual stream.
TEST_P(FusedLinearTest, PartsMadeTogether) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(24); ++round) {
    const int64_t m = round < 6 ? random_.integer(1, 16) : random_.integer(1, 90);
    const int64_t k = width(1, 600);
    std::vector<int64_t> rows;
    for (int i = random_.integer(1, 4); i > 0; --i) rows.push_back(random_.integer(1, 150));
    const double biased = random_.pick({0.0, 0.5, 1.0, 1.0});
    const bool accumulate = round % 4 == 3;
    const DType dtype = accumulate || round % 4 == 2 ? DType::kF32 : activation();
    SCOPED_TRACE(fmt::format("m={} k={} {} parts to {}{}, {} biased", m, k, rows.size(),
                             to_string(dtype), accumulate ? ", added" : "", biased));
    const Parts parts = make_parts(b, rows, k, biased);
    const auto x = activations(m * k);
    GuardedMatrix in(b, m, k, activation()), out(b, m, parts.cols, dtype);
    in.fill(x);
    std::vector<float> before;
    if (accumulate) {
      before = random_.normals(m * parts.cols);
      out.fill(before);
    }
    b.linear(in.view(), parts.into(out.view(), accumulate));
    check(parts, out.take(), before, x, m, sum_tolerance(dtype));
  }
}

// Made together but not written together: outputs apart, in another order, of which one is added
// to.
TEST_P(FusedLinearTest, PartsMadeTogetherWrittenApart) {
  Backend& b = backend(2);
  for (const int64_t m : {1, 7, 16, 17, 40}) {
    SCOPED_TRACE(m);
    const int64_t k = 264;
    const Parts parts = make_parts(b, {33, 48, 33}, k, 0.5);
    const auto x = activations(m * k), before = random_.normals(m * 48);
    GuardedMatrix in(b, m, k, activation());
    in.fill(x);
    std::vector<GuardedMatrix> outs;
    for (size_t i = 0; i < 3; ++i) {
      outs.emplace_back(b, m, parts.packed[i].rows, i == 1 ? DType::kF32 : activation());
    }
    outs[1].fill(before);
    std::vector<LinearPart> list;
    for (const size_t i : {2u, 0u, 1u}) {
      const float* bias =
          parts.biases[i].empty() ? nullptr : parts.uploaded.as<float>() + parts.begins[i];
      list.push_back({&parts.packed[i], bias, outs[i].view(), i == 1});
    }
    b.linear(in.view(), list);
    for (size_t i = 0; i < 3; ++i) {
      auto want = expected_product(*parts.sources[i], x, m, parts.biases[i]);
      for (size_t e = 0; i == 1 && e < want.size(); ++e) want[e] += static_cast<double>(before[e]);
      expect_close(product_error(outs[i].take(), want, *parts.sources[i], x, m),
                   rounds_to_bf16(parts.packed[i].format)
                       ? bf16_rounding(m * parts.packed[i].rows)
                       : sum_tolerance(i == 1 ? DType::kF32 : activation()));
    }
  }
}

// The norm in front.
TEST_P(FusedLinearTest, NormLinear) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(24); ++round) {
    const int64_t m = round < 8 ? 2 * round + 1 : random_.integer(1, 70);
    const int64_t k = round == 0 ? 4096 : width(8, 900);
    const std::vector<int64_t> rows = round % 2 == 0 ? std::vector<int64_t>{65, 17, 17}
                                                     : std::vector<int64_t>{random_.integer(1, 99)};
    const bool logits = round % 3 == 2;
    SCOPED_TRACE(fmt::format("m={} k={} {} parts{}", m, k, rows.size(), logits ? ", logits" : ""));
    const Parts parts = make_parts(b, rows, k, round % 4 == 1 ? 1.0 : 0.0);
    const auto x = random_.normals(m * k, random_.pick({0.01f, 1.0f, 50.0f}));
    const auto norm = random_.normals(k);
    const Buffer norms = b.upload(norm);
    GuardedMatrix in(b, m, k, DType::kF32, Margins::kAboveAndBelow);
    GuardedMatrix normed(b, m, k, activation(), Margins::kAboveAndBelow);
    const DType dtype = logits ? DType::kF32 : activation();
    GuardedMatrix out(b, m, parts.cols, dtype);
    in.fill(x);
    b.norm_linear(in.view(), norms.as<float>(), kEps, normed.view(), parts.into(out.view()));
    // The normalized input is rounded to the element on the way, before or after it is divided by
    // the root.
    const auto multiplied = to_float(expected_norm(x, norm, kEps));
    check(parts, out.take(), {}, multiplied, m, tolerance_or_rounded(3e-6));
    EXPECT_TRUE(same_bits(in.take(), x));
    normed.look();
  }
}

// activation(gate) * up, with the norm in front or without, with biases or without.
TEST_P(FusedLinearTest, GatedLinear) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(32); ++round) {
    const int64_t m = round < 8 ? 2 * round + 1 : random_.integer(1, 60);
    const int64_t k = width(8, 500), n = width(1, 300);
    const bool with_norm = round % 2 == 0, biased = round % 8 == 5, together = round % 8 != 3;
    const Activation activation_kind = round % 4 < 2 ? Activation::kSilu : Activation::kGeluTanh;
    SCOPED_TRACE(fmt::format(
        "m={} n={} k={} {}{}{}{}", m, n, k, activation_kind == Activation::kSilu ? "silu" : "gelu",
        with_norm ? ", norm" : "", biased ? ", biases" : "", together ? "" : ", apart"));
    Parts parts = make_parts(b, {n, n}, k, biased ? 1.0 : 0.0);
    if (!together) parts.packed[1] = b.make_weight(parts.sources[1]->slice);
    const auto x = with_norm ? random_.normals(m * k, 2.0f) : activations(m * k);
    const auto norm = random_.normals(k);
    const Buffer norms = b.upload(norm);
    GuardedMatrix in(b, m, k, with_norm ? DType::kF32 : activation(),
                     with_norm ? Margins::kAboveAndBelow : Margins::kAround);
    GuardedMatrix normed(b, m, k, activation(), Margins::kAboveAndBelow);
    GuardedMatrix out(b, m, 2 * n, activation());
    in.fill(x);
    const auto list = parts.into(out.view());
    b.gated_linear(in.view(), with_norm ? norms.as<float>() : nullptr, kEps, normed.view(),
                   std::span<const LinearPart, 2>(list.data(), 2), activation_kind);
    const auto multiplied = with_norm ? to_float(expected_norm(x, norm, kEps)) : x;
    const auto gate = expected_product(*parts.sources[0], multiplied, m, parts.biases[0]);
    const auto up = expected_product(*parts.sources[1], multiplied, m, parts.biases[1]);
    std::vector<double> want;
    for (size_t i = 0; i < gate.size(); ++i) {
      want.push_back(expected_activation(gate[i], activation_kind) * up[i]);
    }
    // Input, gate, up and their product may each be rounded to the element. An up part of few
    // columns whose sums cancel is no measure, so there are many.
    double tolerance = on_gpu() ? of_element(8e-3) : (n * m < 64 ? 1e-4 : 2e-5);
    for (const auto& source : parts.sources) {
      if (!rounds_to_bf16(source->slice.format)) continue;
      tolerance += (n * m < 64 ? 5 : 1) * bf16_rounding(m * n);
    }
    expect_close(relative_l2(parts.columns(out.look(), 0, m), want), tolerance);
    EXPECT_TRUE(same_bits(in.take(), x));
    normed.look();
  }
}

TRIREME_ON_CPU(FusedLinearTest);
TRIREME_ON_GPU(FusedLinearTest);

}  // namespace
}  // namespace trireme::testing
