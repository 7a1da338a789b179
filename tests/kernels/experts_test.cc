// A mixture of experts against plain loops in float64.
#include <algorithm>
#include <numeric>

#include "tests/kernels/linear_reference.h"

namespace trireme::testing {
namespace {

class ExpertsTest : public BackendTest {
 protected:
  struct Sizes {
    int experts = 0, per_token = 0, first = 0, held = 0;
    int64_t hidden = 0, ffn = 0;
  };
  struct Mixture {
    Sizes sizes;
    QuantFormat format = QuantFormat::kF32;
    std::unique_ptr<TestWeight> router;
    std::vector<std::unique_ptr<TestWeight>> gate, up, down;
    Weight packed_router;
    std::vector<Weight> packed_gate, packed_up, packed_down;
    bool normalize = true;
    Activation activation = Activation::kSilu;

    ExpertLayer layer() const {
      return {&packed_router, packed_gate,     packed_up, packed_down,
              sizes.first,    sizes.per_token, normalize, activation};
    }
  };

  Sizes random_sizes(bool blocks) {
    Sizes s;
    s.experts = random_.integer(1, 40);
    s.per_token = random_.integer(1, std::min(s.experts, 9));
    s.first = random_.integer(0, s.experts - 1);
    s.held = random_.integer(1, s.experts - s.first);
    s.hidden = blocks ? 32 * random_.integer(1, 6) : width(1, 200);
    s.ffn = blocks ? 32 * random_.integer(1, 4) : width(1, 150);
    return s;
  }

  // Packed as the loader does it.
  Mixture make_mixture(Backend& b, const Sizes& sizes, QuantFormat format) {
    Mixture m;
    m.sizes = sizes;
    m.format = format;
    m.normalize = random_.chance(0.5);
    m.activation = random_.pick({Activation::kSilu, Activation::kGeluTanh});
    m.router =
        std::make_unique<TestWeight>(b, random_, QuantFormat::kF32, sizes.experts, sizes.hidden);
    m.packed_router = b.make_weight(m.router->slice);
    std::vector<WeightSlice> inner, outer;
    for (int e = 0; e < sizes.held; ++e) {
      const auto make = [&](auto& list, int64_t rows, int64_t cols) {
        list.push_back(std::make_unique<TestWeight>(b, random_, format, rows, cols));
        return list.back()->slice;
      };
      inner.push_back(make(m.gate, sizes.ffn, sizes.hidden));
      inner.push_back(make(m.up, sizes.ffn, sizes.hidden));
      outer.push_back(make(m.down, sizes.hidden, sizes.ffn));
    }
    auto packed = b.make_weights(inner);
    for (size_t i = 0; i < packed.size(); i += 2) {
      m.packed_gate.push_back(std::move(packed[i]));
      m.packed_up.push_back(std::move(packed[i + 1]));
    }
    m.packed_down = b.make_weights(outer);
    return m;
  }

  // The chosen experts and what they weigh; how far the last one leads.
  struct Route {
    std::vector<std::pair<int, double>> chosen;
    double lead = INFINITY;
  };
  static Route route(const Mixture& m, const std::vector<float>& x) {
    const auto scores = expected_product(*m.router, x, 1);
    std::vector<int> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
    });
    const auto score = [&](size_t i) { return scores[static_cast<size_t>(order[i])]; };
    const auto k = static_cast<size_t>(m.sizes.per_token);
    Route route;
    if (k < order.size()) route.lead = score(k - 1) - score(k);
    double all = 0, kept = 0;
    for (size_t i = 0; i < order.size(); ++i) {
      all += std::exp(score(i) - score(0));
      if (i < k) kept = all;
    }
    for (size_t i = 0; i < k; ++i) {
      route.chosen.emplace_back(order[i],
                                std::exp(score(i) - score(0)) / (m.normalize ? kept : all));
    }
    return route;
  }

  // Tokens whose choice no rounding changes.
  std::vector<float> clear_tokens(const Mixture& m, int64_t tokens) {
    std::vector<float> x;
    while (static_cast<int64_t>(x.size()) < tokens * m.sizes.hidden) {
      const auto row = activations(m.sizes.hidden, 0.3f);
      if (route(m, row).lead > 1e-2) x.insert(x.end(), row.begin(), row.end());
    }
    return x;
  }

  static std::vector<double> expected(const Mixture& m, const std::vector<float>& x) {
    const auto hidden = static_cast<size_t>(m.sizes.hidden);
    std::vector<double> y(x.size());
    for (size_t t = 0; t * hidden < x.size(); ++t) {
      const std::vector<float> row(x.begin() + static_cast<ptrdiff_t>(t * hidden),
                                   x.begin() + static_cast<ptrdiff_t>((t + 1) * hidden));
      for (const auto& [expert, weight] : route(m, row).chosen) {
        const int e = expert - m.sizes.first;
        if (e < 0 || e >= m.sizes.held) continue;
        const auto at = static_cast<size_t>(e);
        const auto gate = expected_product(*m.gate[at], row, 1);
        const auto up = expected_product(*m.up[at], row, 1);
        for (size_t n = 0; n < hidden; ++n) {
          double sum = 0;
          for (size_t i = 0; i < gate.size(); ++i) {
            sum += static_cast<double>(m.down[at]->values[n * gate.size() + i]) *
                   expected_activation(gate[i], m.activation) * up[i];
          }
          y[t * hidden + n] += weight * sum;
        }
      }
    }
    return y;
  }

  // Input, gate, up, their product and the sum may each be rounded to the element; the CPU's
  // quantized products have activations of 15 bits. Products of bf16 may round their input, which
  // counts for gate and for up, and the input of the last one: by up to 2^-8 each.
  double tolerance(const Mixture& m) const {
    if (on_gpu()) return of_element(1.2e-2);
    if (rounds_to_bf16(m.format)) return 3 * 0x1p-8;
    return is_plain(m.format) || is_reference() ? 2e-5 : 5e-4;
  }
};

TEST_P(ExpertsTest, AreThoseOfTheRouter) {
  Backend& b = backend(2);
  for (int round = 0; round < rounds(24); ++round) {
    const QuantFormat format = random_.pick(
        {QuantFormat::kF32, QuantFormat::kBF16, QuantFormat::kF16, QuantFormat::kQ8_0});
    const Mixture m = make_mixture(b, random_sizes(!is_plain(format)), format);
    const int64_t tokens = round < 6 ? round + 1 : random_.integer(1, 150);
    const bool accumulate = random_.chance(0.5);
    SCOPED_TRACE(fmt::format("{} tokens of {}, {} of {} experts of {}, held {} + {}, {}{}{}",
                             tokens, m.sizes.hidden, m.sizes.per_token, m.sizes.experts,
                             m.sizes.ffn, m.sizes.first, m.sizes.held, traits(format).name,
                             m.normalize ? ", normalized" : "", accumulate ? ", added" : ""));
    const auto x = clear_tokens(m, tokens);
    auto want = expected(m, x);
    double norm = 0;
    for (const double v : want) norm += v * v;
    const auto before = random_.normals(tokens * m.sizes.hidden);
    GuardedMatrix in(b, tokens, m.sizes.hidden, activation(), Margins::kAboveAndBelow);
    GuardedMatrix out(b, tokens, m.sizes.hidden, accumulate ? DType::kF32 : activation(),
                      Margins::kAboveAndBelow);
    in.fill(x);
    if (accumulate) out.fill(before);
    const ExpertShape shape{m.sizes.experts, m.sizes.per_token, m.sizes.held, m.sizes.hidden,
                            m.sizes.ffn};
    GuardedMatrix scratch(b, 1, (b.expert_scratch_bytes(shape, tokens) + 3) / 4, DType::kF32,
                          Margins::kAboveAndBelow);
    b.experts(in.view(), m.layer(), scratch.view(), out.view(), accumulate);
    auto got = out.take();
    scratch.look();
    EXPECT_TRUE(same_bits(in.take(), x));
    double error = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double had = accumulate ? static_cast<double>(before[i]) : 0.0;
      error += (got[i] - had - want[i]) * (got[i] - had - want[i]);
    }
    // What is added to is of the size of 1 and rounded at 2^-24 of it.
    const double rounding = accumulate ? 1e-7 * std::sqrt(static_cast<double>(got.size())) : 0.0;
    EXPECT_FALSE(std::isnan(error));
    EXPECT_LE(std::sqrt(error), tolerance(m) * std::sqrt(norm) + rounding);
  }
}

// Where scores are equal, the lower number.
TEST_P(ExpertsTest, TiesGoToTheLowerNumber) {
  Backend& b = backend(1);
  Sizes sizes{.experts = 5, .per_token = 2, .first = 0, .held = 5, .hidden = 16, .ffn = 8};
  Mixture m = make_mixture(b, sizes, QuantFormat::kF32);
  // All rows of the router are its first.
  m.router->slice.row = [&router = *m.router](int64_t, std::byte*) { return router.bytes.data(); };
  for (int e = 1; e < sizes.experts; ++e) {
    std::copy_n(m.router->values.begin(), sizes.hidden,
                m.router->values.begin() + e * sizes.hidden);
  }
  m.packed_router = b.make_weight(m.router->slice);
  const auto x = activations(sizes.hidden);
  GuardedMatrix in(b, 1, sizes.hidden, activation(), Margins::kAboveAndBelow);
  GuardedMatrix out(b, 1, sizes.hidden, activation(), Margins::kAboveAndBelow);
  in.fill(x);
  const ExpertShape shape{5, 2, 5, 16, 8};
  GuardedMatrix scratch(b, 1, (b.expert_scratch_bytes(shape, 1) + 3) / 4, DType::kF32,
                        Margins::kAboveAndBelow);
  b.experts(in.view(), m.layer(), scratch.view(), out.view(), false);
  const auto chosen = route(m, x).chosen;
  EXPECT_EQ(chosen[0].first, 0);
  EXPECT_EQ(chosen[1].first, 1);
  expect_close(relative_l2(out.take(), expected(m, x)), tolerance(m));
}

TRIREME_ON_CPU(ExpertsTest);
TRIREME_ON_GPU(ExpertsTest);

// A token's bits do not depend on its company, nor on the number of threads.
class ExpertsCpuTest : public ExpertsTest {};

TEST_P(ExpertsCpuTest, RowsAreIndependent) {
  for (const QuantFormat format : {QuantFormat::kBF16, QuantFormat::kQ8_0}) {
    const Sizes sizes{
        .experts = 7, .per_token = 3, .first = 1, .held = 5, .hidden = 160, .ffn = 96};
    Backend& two = backend(2);
    Backend& one = backend(1);
    const Mixture m = make_mixture(two, sizes, format);
    constexpr int64_t kTokens = 90;
    const auto x = activations(kTokens * sizes.hidden);
    const auto run = [&](Backend& b, std::vector<float> rows) {
      const auto tokens = static_cast<int64_t>(rows.size()) / sizes.hidden;
      std::vector<float> y(rows.size(), -1.0f);
      Buffer scratch(static_cast<size_t>(b.expert_scratch_bytes({7, 3, 5, 160, 96}, tokens)));
      b.experts(matrix_f32(rows.data(), tokens, sizes.hidden), m.layer(),
                matrix_f32(scratch.as<float>(), 1, static_cast<int64_t>(scratch.size() / 4)),
                matrix_f32(y.data(), tokens, sizes.hidden), false);
      return y;
    };
    const auto all = run(two, x);
    EXPECT_TRUE(same_bits(run(one, x), all));
    for (const int64_t t : {0, 1, 44, 89}) {
      const auto begin = t * sizes.hidden;
      const std::vector<float> row(x.begin() + begin, x.begin() + begin + sizes.hidden);
      const std::vector<float> want(all.begin() + begin, all.begin() + begin + sizes.hidden);
      EXPECT_TRUE(same_bits(run(two, row), want)) << "token " << t;
    }
  }
}

TRIREME_ON_CPU(ExpertsCpuTest);

}  // namespace
}  // namespace trireme::testing
