// Random cases for the sampler, run where logit_place() keeps the logits: in host memory
// (sampler_host_place.cc) or on a GPU (sampler_gpu_test.cc).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "runtime/rng.h"
#include "runtime/sampler.h"
#include "tests/unit/sampler_reference.h"

namespace trireme {

// Where one rank keeps its logits.
class LogitPlace {
 public:
  virtual ~LogitPlace() = default;
  virtual std::unique_ptr<LogitRows> rows() { return nullptr; }
  // The values there; they stay until the next call.
  virtual MatrixView put(std::vector<float>& values, int64_t rows, int64_t cols) {
    return matrix_f32(values.data(), rows, cols);
  }
};
LogitPlace& logit_place(size_t rank);

struct Case {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<int32_t> prompt, generated;
  uint32_t output_index = 0;
  bool score = false;  // only score `target`
  int32_t target = -1;
  int32_t top = 0;
};

// Uneven parts of the vocabulary for `ranks` ranks.
inline std::vector<Part> uneven_parts(int64_t vocab, int ranks) {
  std::vector<Part> parts;
  int64_t begin = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    int64_t end = rank + 1 == ranks ? vocab : vocab * (rank + 1) / ranks + 7 * rank - 3;
    end = std::clamp<int64_t>(end, begin, vocab);
    parts.push_back({begin, end - begin});
    begin = end;
  }
  return parts;
}

inline std::vector<Sampled> sample_on(Communicator& tp, Part part, const std::vector<Case>& cases,
                                      LogitPlace& place) {
  const auto vocab = static_cast<int64_t>(cases.front().logits.size());
  Sampler sampler(tp, part, vocab, place.rows());
  std::vector<float> logits;
  std::vector<TokenCounts> counts(cases.size());
  std::vector<SampleRow> rows;
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& one = cases[i];
    logits.insert(logits.end(), one.logits.begin() + part.begin, one.logits.begin() + part.end());
    for (const int32_t token : one.prompt) counts[i].add(token, false);
    for (const int32_t token : one.generated) counts[i].add(token, true);
    SampleRow row;
    if (!one.score) row.params = &one.params;
    row.counts = &counts[i];
    row.output_index = one.output_index;
    row.position = static_cast<int32_t>(one.generated.size());
    row.target = one.target;
    row.top = one.top;
    rows.push_back(row);
  }
  std::vector<Sampled> out;
  const auto count = static_cast<int64_t>(cases.size());
  sampler.sample(place.put(logits, count, part.count), rows, out);
  return out;
}

inline bool equal(const Sampled& a, const Sampled& b) {
  return a.token == b.token && a.logprob == b.logprob &&
         std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(),
                    [](const TokenLogprob& x, const TokenLogprob& y) {
                      return x.token == y.token && x.logprob == y.logprob;
                    });
}

// Runs the cases on `ranks` ranks and checks that all come to the same result.
inline std::vector<Sampled> sample_split(const std::vector<Case>& cases, int ranks) {
  const auto parts = uneven_parts(static_cast<int64_t>(cases.front().logits.size()), ranks);
  auto group = make_thread_communicators(ranks, "tp");
  std::vector<std::vector<Sampled>> results(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < results.size(); ++rank) {
    threads.emplace_back([&, rank] {
      results[rank] = sample_on(*group[rank], parts[rank], cases, logit_place(rank));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) {
    for (size_t i = 0; i < cases.size(); ++i) EXPECT_TRUE(equal(result[i], results[0][i]));
  }
  return results[0];
}

inline std::vector<Sampled> sample_whole(const std::vector<Case>& cases) {
  auto single = make_single_communicator();
  const auto vocab = static_cast<int64_t>(cases.front().logits.size());
  return sample_on(*single, {0, vocab}, cases, logit_place(0));
}

inline uint64_t key_of(const Case& one) {
  return draw_key(one.params.seed, one.output_index, static_cast<uint32_t>(one.generated.size()),
                  0);
}

inline int32_t expected_token(const Case& one) {
  const auto logits = reference::adjust(one.logits, one.params, one.prompt, one.generated);
  if (one.params.greedy()) {
    const auto best = std::max_element(logits.begin(), logits.end());
    return static_cast<int32_t>(best - logits.begin());
  }
  const auto kept = reference::probabilities(logits, one.params);
  return reference::draw(logits, kept, one.params, key_of(one));
}

// Random parameters of every kind, over a vocabulary of `vocab`.
inline Case random_case(uint64_t seed, int vocab) {
  std::mt19937_64 random(seed * 977 + 5);
  const auto chance = [&](int percent) { return static_cast<int>(random() % 100) < percent; };
  const auto real = [&](float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random);
  };
  const auto token = [&] { return static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)); };
  Case one;
  one.logits = reference::random_logits(seed, vocab, real(0.5f, 5.0f));
  if (chance(30)) {  // ties: a coarse grid of logits
    for (float& logit : one.logits) logit = std::round(logit * 2.0f) / 2.0f;
  }
  SamplingParams& params = one.params;
  params.seed = random();
  params.temperature = chance(20) ? 0.0f : real(0.1f, 2.0f);
  if (chance(50)) params.top_k = 1 + static_cast<int32_t>(random() % (chance(30) ? 900 : 40));
  if (chance(50)) params.top_p = real(0.05f, 0.999f);
  if (chance(40)) params.min_p = real(0.0f, 0.3f);
  if (chance(50)) params.repetition_penalty = real(0.7f, 1.6f);
  if (chance(50)) params.presence_penalty = real(-2.0f, 2.0f);
  if (chance(50)) params.frequency_penalty = real(-2.0f, 2.0f);
  for (int i = 0; chance(70) && i < 20; ++i) params.logit_bias.emplace_back(token(), real(-5, 5));
  for (int i = 0; chance(80) && i < 20; ++i) params.banned_tokens.push_back(token());
  for (int i = 0; i < 3; ++i) params.stop_ids.push_back(token());
  if (chance(20)) {
    for (int i = 0; i < vocab / 3; ++i) params.allowed_tokens.push_back(token());
  }
  params.min_tokens = static_cast<int32_t>(random() % 10);
  for (int i = 0; i < 40; ++i) one.prompt.push_back(token());
  for (uint64_t i = random() % 12; i > 0; --i) one.generated.push_back(token() % 10);
  if (chance(60)) params.logprobs = static_cast<int32_t>(random() % 6);
  one.output_index = static_cast<uint32_t>(random() % 4);
  return one;
}

}  // namespace trireme
