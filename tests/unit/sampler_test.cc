#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <random>

#include "runtime/rng.h"
#include "tests/unit/sampler_cases.h"

namespace trireme {
namespace {

TEST(Sampler, EverySplitAgreesWithTheReference) {
  std::vector<Case> cases;
  for (uint64_t seed = 0; seed < 200; ++seed) cases.push_back(random_case(seed, 1511));
  const auto whole = sample_whole(cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(whole[i].token, expected_token(cases[i])) << "case " << i;
  }
  for (int ranks = 2; ranks <= 4; ++ranks) {
    const auto split = sample_split(cases, ranks);
    for (size_t i = 0; i < cases.size(); ++i) {
      EXPECT_TRUE(equal(split[i], whole[i])) << "case " << i << " on " << ranks << " ranks";
    }
  }
}

TEST(Sampler, RowsDoNotDependOnTheBatch) {
  std::vector<Case> cases;
  for (uint64_t seed = 300; seed < 330; ++seed) cases.push_back(random_case(seed, 700));
  const auto together = sample_whole(cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    EXPECT_TRUE(equal(sample_whole({cases[i]})[0], together[i])) << "case " << i;
  }
}

TEST(Sampler, MoreRanksThanTokens) {
  std::vector<Case> cases;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Case one;
    one.logits = reference::random_logits(seed, 3);
    one.params.seed = seed;
    one.params.logprobs = 2;
    if (seed % 2) one.params.top_p = 0.7f;
    cases.push_back(one);
  }
  const auto split = sample_split(cases, 4);
  for (size_t i = 0; i < cases.size(); ++i) EXPECT_EQ(split[i].token, expected_token(cases[i]));
}

// Pearson's statistic of `draws` samples against the exact distribution; seeds are fixed, so this
// cannot fail by chance.
void expect_distribution(Case one, int draws) {
  const auto adjusted = reference::adjust(one.logits, one.params, one.prompt, one.generated);
  const auto exact = reference::probabilities(adjusted, one.params);
  std::vector<Case> cases(static_cast<size_t>(draws), one);
  for (size_t i = 0; i < cases.size(); ++i) cases[i].params.seed = 1000 + i;
  const auto drawn = sample_whole(cases);
  std::vector<int> seen(exact.size(), 0);
  for (const Sampled& sampled : drawn) ++seen[static_cast<size_t>(sampled.token)];
  double statistic = 0.0, rest_expected = 0.0, rest_seen = 0.0;
  int cells = 0;
  const auto cell = [&](double expected, double count) {
    statistic += (count - expected) * (count - expected) / expected;
    ++cells;
  };
  for (size_t i = 0; i < exact.size(); ++i) {
    if (exact[i] == 0.0) {
      EXPECT_EQ(seen[i], 0);
    } else if (exact[i] * draws >= 8.0) {
      cell(exact[i] * draws, seen[i]);
    } else {
      rest_expected += exact[i] * draws;
      rest_seen += seen[i];
    }
  }
  if (rest_expected >= 8.0) cell(rest_expected, rest_seen);
  const double freedom = cells - 1;  // mean; the variance is twice that
  EXPECT_LT(statistic, freedom + 4.0 * std::sqrt(2.0 * freedom) + 4.0) << cells << " cells";
}

TEST(Sampler, DrawsFollowTheDistribution) {
  Case one;
  one.logits = reference::random_logits(7, 50, 1.5f);
  expect_distribution(one, 20000);
  one.params.temperature = 0.6f;
  expect_distribution(one, 20000);
  one.params.temperature = 1.7f;
  one.params.top_k = 12;
  expect_distribution(one, 20000);
  one.params.top_p = 0.8f;
  expect_distribution(one, 20000);
  one.params.top_k = 0;
  expect_distribution(one, 20000);
  one.params.top_p = 1.0f;
  one.params.min_p = 0.15f;
  expect_distribution(one, 20000);
}

// The logarithm that CPU and GPU share, in the two ranges that Gumbel noise takes it of.
TEST(Sampler, LogarithmIsExactToTheLastBits) {
  std::mt19937_64 random(std::random_device{}());
  double worst = 0.0;
  const auto check = [&](double x) {
    const long double exact = std::log(static_cast<long double>(x));
    const long double error = static_cast<long double>(natural_log(x)) - exact;
    worst = std::max(worst, static_cast<double>(std::abs(error / exact)));
  };
  for (int i = 0; i < 200000; ++i) {
    const double tail = uniform_of(random());
    check(1.0 - tail);
    check(-natural_log(1.0 - tail));
    check(1.0 - tail * 0x1p-30);
  }
  for (const double x : {0x1p-53, 1.0 - 0x1p-53, 0.7071067811865475, 0.7071067811865476, 36.7}) {
    check(x);
  }
  EXPECT_LT(worst, 0x1p-50);
  EXPECT_EQ(natural_log(1.0), 0.0);
  EXPECT_LT(gumbel(0x1p-53), kMaxGumbel);
}

// The noise must be independent over positions and outputs too, not only over seeds.
TEST(Sampler, NoiseIsUniformAlongEveryKey) {
  const auto expect_uniform = [](const std::function<double(int)>& value) {
    constexpr int kCells = 64, kDraws = 64000;
    std::vector<int> seen(kCells, 0);
    for (int i = 0; i < kDraws; ++i) ++seen[static_cast<size_t>(value(i) * kCells)];
    double statistic = 0.0;
    for (const int count : seen) statistic += (count - 1000.0) * (count - 1000.0) / 1000.0;
    EXPECT_LT(statistic, 63 + 4 * std::sqrt(126.0));
    EXPECT_GT(statistic, 63 - 4 * std::sqrt(126.0));
  };
  const auto at = [](int i) { return static_cast<uint32_t>(i); };
  expect_uniform([&](int i) { return uniform(draw_key(at(i), 0, 0, 0), 5); });
  expect_uniform([&](int i) { return uniform(draw_key(1, at(i), 0, 0), 5); });
  expect_uniform([&](int i) { return uniform(draw_key(1, 0, at(i), 0), 5); });
  expect_uniform([&](int i) { return uniform(draw_key(1, 0, 0, at(i)), 5); });
  expect_uniform([&](int i) { return uniform(draw_key(1, 0, 0, 0), i); });
}

TEST(Sampler, GreedyTiesGoToTheLowestId) {
  Case one;
  one.logits.assign(300, 1.0f);
  one.params.temperature = 0.0f;
  EXPECT_EQ(sample_whole({one})[0].token, 0);
  one.logits[250] = one.logits[130] = 2.0f;
  EXPECT_EQ(sample_whole({one})[0].token, 130);
  EXPECT_EQ(sample_split({one}, 3)[0].token, 130);
}

TEST(Sampler, EdgesOfTheLimits) {
  Case one;
  one.logits = reference::random_logits(3, 400);
  const auto greedy = static_cast<int32_t>(std::max_element(one.logits.begin(), one.logits.end()) -
                                           one.logits.begin());
  const auto expect_greedy = [&](const std::function<void(SamplingParams&)>& set) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Case copy = one;
      copy.params.seed = seed;
      set(copy.params);
      EXPECT_EQ(sample_split({copy}, 2)[0].token, greedy);
    }
  };
  expect_greedy([](SamplingParams& params) { params.top_k = 1; });
  expect_greedy([](SamplingParams& params) { params.top_p = 1e-9f; });
  expect_greedy([](SamplingParams& params) { params.min_p = 1.0f; });
  expect_greedy([](SamplingParams& params) { params.temperature = 1e-30f; });
  expect_greedy([](SamplingParams& params) {
    params.temperature = 1e-30f;
    params.top_p = 0.999f;
  });
  // A limit that keeps everything changes nothing.
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Case free = one, wide = one;
    free.params.seed = wide.params.seed = seed;
    wide.params.top_k = 400;
    EXPECT_EQ(sample_split({free}, 2)[0].token, sample_split({wide}, 2)[0].token);
    wide.params.top_k = 399;  // all but the worst token, by way of candidates
    const int32_t token = sample_split({free}, 2)[0].token;
    EXPECT_EQ(sample_split({wide}, 2)[0].token, token);
  }
}

TEST(Sampler, FlatDistributionsNeedManyCandidates) {
  for (const float top_p : {0.3f, 0.9f, 0.999f}) {
    Case one;
    one.logits.assign(5000, 0.25f);
    one.params.top_p = top_p;
    for (uint64_t seed = 0; seed < 5; ++seed) {
      one.params.seed = seed;
      EXPECT_EQ(sample_whole({one})[0].token, expected_token(one));
      EXPECT_EQ(sample_split({one}, 3)[0].token, expected_token(one));
    }
  }
}

// More tokens are kept than any first round of candidates holds, with and without ties.
TEST(Sampler, WideTopP) {
  std::vector<Case> cases;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Case one;
    one.logits = reference::random_logits(seed, 4001, 2.0f);
    if (seed % 2) {
      for (float& logit : one.logits) logit = std::round(logit);
    }
    one.params.seed = seed;
    one.params.temperature = 1.0f + 0.1f * static_cast<float>(seed % 20);
    one.params.top_p = seed % 5 ? 0.9f : 0.9999f;
    if (seed % 3 == 0) one.params.min_p = 0.002f;
    if (seed % 4 == 0) one.params.banned_tokens = {1, 2, 3, 4000};
    cases.push_back(one);
  }
  const auto whole = sample_whole(cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(whole[i].token, expected_token(cases[i])) << "case " << i;
  }
  for (int ranks = 2; ranks <= 4; ++ranks) {
    const auto split = sample_split(cases, ranks);
    for (size_t i = 0; i < cases.size(); ++i) EXPECT_EQ(split[i].token, whole[i].token) << i;
  }
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  Case one;
  one.logits = reference::random_logits(11, 900);
  one.params.temperature = 0.3f;
  one.params.banned_tokens = {5};
  one.params.logit_bias = {{17, 100.0f}};  // certainly chosen, whatever its raw logit
  one.params.repetition_penalty = 1.5f;
  one.prompt = {17, 3};
  const auto exact = reference::log_softmax(one.logits);
  for (const int32_t k : {0, 1, 5, 64, 300, 900}) {
    one.params.logprobs = k;
    for (int ranks = 1; ranks <= 4; ++ranks) {
      const Sampled sampled = sample_split({one}, ranks)[0];
      EXPECT_EQ(sampled.token, 17);
      EXPECT_NEAR(sampled.logprob, exact[17], 1e-5);
      ASSERT_EQ(sampled.top.size(), static_cast<size_t>(k));
      std::vector<int32_t> order(900);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return one.logits[static_cast<size_t>(a)] > one.logits[static_cast<size_t>(b)];
      });
      for (size_t i = 0; i < sampled.top.size(); ++i) {
        EXPECT_EQ(sampled.top[i].token, order[i]);
        EXPECT_NEAR(sampled.top[i].logprob, exact[static_cast<size_t>(order[i])], 1e-5);
      }
    }
  }
}

TEST(Sampler, ScoresTargets) {
  std::vector<Case> cases;
  for (int i = 0; i < 40; ++i) {
    Case one;
    one.logits = reference::random_logits(static_cast<uint64_t>(i), 333);
    one.score = i % 4 != 3;  // some rows of the batch sample
    one.target = one.score ? (i * 37) % 333 : -1;
    one.top = i % 9;
    cases.push_back(one);
  }
  for (int ranks = 1; ranks <= 3; ++ranks) {
    const auto out = sample_split(cases, ranks);
    for (size_t i = 0; i < cases.size(); ++i) {
      if (!cases[i].score) continue;
      const auto exact = reference::log_softmax(cases[i].logits);
      EXPECT_EQ(out[i].token, cases[i].target);
      EXPECT_NEAR(out[i].logprob, exact[static_cast<size_t>(cases[i].target)], 1e-5);
      EXPECT_EQ(out[i].top.size(), static_cast<size_t>(cases[i].top));
    }
  }
}

// Among random cases a token that was seen is seldom near the top: here it is the top.
TEST(Sampler, PenaltiesTakeTheLeadFromWhatWasSeen) {
  constexpr int32_t kSeen = 300, kOther = 7;
  struct Lead {
    float seen, other;
    void (*change)(SamplingParams&);
    bool generated;  // seen in the output, not in the prompt
    bool lost;
  };
  const auto repetition = [](SamplingParams& params) { params.repetition_penalty = 1.5f; };
  const auto presence = [](SamplingParams& params) { params.presence_penalty = 0.3f; };
  const auto frequency = [](SamplingParams& params) { params.frequency_penalty = 0.15f; };
  for (const Lead& lead :
       {Lead{1.2f, 1.0f, repetition, false, true}, Lead{-1.0f, -1.2f, repetition, false, true},
        Lead{1.2f, 0.7f, repetition, true, false}, Lead{1.2f, 1.0f, presence, true, true},
        Lead{1.2f, 1.0f, presence, false, false}, Lead{1.2f, 1.0f, frequency, true, true},  // twice
        Lead{1.2f, 1.0f, frequency, false, false}}) {
    Case one;
    one.logits.assign(515, -9.0f);
    one.logits[kSeen] = lead.seen;
    one.logits[kOther] = lead.other;
    one.params.temperature = 0.0f;
    lead.change(one.params);
    (lead.generated ? one.generated : one.prompt) = {kSeen, kSeen};
    for (const int ranks : {1, 3}) {
      EXPECT_EQ(sample_split({one}, ranks)[0].token, lead.lost ? kOther : kSeen)
          << lead.seen << " " << lead.other << (lead.generated ? " generated" : " prompt");
    }
  }
}

TEST(Sampler, MinTokensBansStopIds) {
  Case one;
  one.logits.assign(100, 0.0f);
  one.logits[42] = 50.0f;
  one.params.temperature = 0.0f;
  one.params.stop_ids = {42};
  one.params.min_tokens = 2;
  EXPECT_EQ(sample_whole({one})[0].token, 0);
  one.generated = {1};
  EXPECT_EQ(sample_whole({one})[0].token, 0);
  one.generated = {1, 2};
  EXPECT_EQ(sample_whole({one})[0].token, 42);
}

TEST(Sampler, NothingLeftIsMinusOne) {
  for (int variant = 0; variant < 5; ++variant) {
    Case one;
    one.logits = reference::random_logits(1, 80);
    one.params.allowed_tokens = {3, 79};
    one.params.banned_tokens = {3, 79};
    one.params.logprobs = 2;
    if (variant == 1) one.params.temperature = 0.0f;
    if (variant == 2) one.params.top_k = 5;
    if (variant == 3) one.params.top_p = 0.5f;
    if (variant == 4) one.params.min_p = 0.5f;
    EXPECT_EQ(sample_whole({one})[0].token, -1);
    EXPECT_EQ(sample_split({one}, 3)[0].token, -1);
  }
}

TEST(Sampler, NanAndInfinityDoNoHarm) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (int variant = 0; variant < 5; ++variant) {
    Case one;
    one.logits.assign(200, nan);
    one.logits[150] = -3.0f;
    if (variant == 1) one.logits[151] = infinity;
    if (variant == 2) one.logits[150] = nan;
    if (variant == 3) one.logits.assign(200, -infinity);
    if (variant == 4) one.logits.assign(200, infinity);
    one.params.logprobs = 3;
    const int32_t expected[] = {150, 151, -1, -1, 0};
    for (const float temperature : {0.0f, 1.0f}) {
      for (const float top_p : {1.0f, 0.9f}) {
        for (const float min_p : {0.0f, 0.5f}) {
          one.params.temperature = temperature;
          one.params.top_p = top_p;
          one.params.min_p = min_p;
          const auto out = sample_split({one}, 2);
          if (variant == 4 && temperature > 0.0f) {
            EXPECT_GE(out[0].token, 0);
          } else {
            EXPECT_EQ(out[0].token, expected[variant]) << variant;
          }
          for (const TokenLogprob& entry : out[0].top) EXPECT_TRUE(std::isfinite(entry.logprob));
        }
      }
    }
  }
}

}  // namespace
}  // namespace trireme
