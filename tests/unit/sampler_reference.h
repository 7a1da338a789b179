// The sampler's rules written plainly, in double and over the whole vocabulary.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "runtime/rng.h"
#include "runtime/sampling_params.h"

namespace trireme::reference {

inline constexpr double kBanned = -std::numeric_limits<double>::infinity();

inline std::vector<float> random_logits(uint64_t seed, int vocab, float spread = 3.0f) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(static_cast<size_t>(vocab));
  for (float& logit : logits) logit = normal(random);
  return logits;
}

inline std::vector<double> log_softmax(const std::vector<float>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - max);
  std::vector<double> out;
  for (const float logit : logits) out.push_back(logit - max - std::log(sum));
  return out;
}

// Float arithmetic, as the rules are stated for float logits.
inline std::vector<float> adjust(std::vector<float> logits, const SamplingParams& params,
                                 const std::vector<int32_t>& prompt,
                                 const std::vector<int32_t>& generated) {
  const float none = -std::numeric_limits<float>::infinity();
  const std::set<int32_t> allowed(params.allowed_tokens.begin(), params.allowed_tokens.end());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!allowed.empty() && !allowed.contains(static_cast<int32_t>(i))) logits[i] = none;
  }
  for (const int32_t token : params.banned_tokens) logits[static_cast<size_t>(token)] = none;
  for (const auto& [token, bias] : params.logit_bias) logits[static_cast<size_t>(token)] += bias;
  std::map<int32_t, int> in_all, in_generated;
  for (const int32_t token : prompt) ++in_all[token];
  for (const int32_t token : generated) ++in_all[token], ++in_generated[token];
  for (const auto& [token, times] : in_all) {
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  }
  for (const auto& [token, times] : in_generated) {
    float& logit = logits[static_cast<size_t>(token)];
    logit -= params.presence_penalty;
    logit -= params.frequency_penalty * static_cast<float>(times);
  }
  if (static_cast<int32_t>(generated.size()) < params.min_tokens) {
    for (const int32_t token : params.stop_ids) logits[static_cast<size_t>(token)] = none;
  }
  return logits;
}

// Probabilities after temperature, top_k, top_p, min_p; zero for what is not kept.
inline std::vector<double> probabilities(const std::vector<float>& logits,
                                         const SamplingParams& params) {
  std::vector<size_t> order;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != -std::numeric_limits<float>::infinity()) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> out(logits.size(), 0.0);
  if (order.empty()) return out;
  const double max = logits[order[0]];
  const auto weight = [&](size_t i) {
    return std::exp((logits[i] - max) / static_cast<double>(params.temperature));
  };
  if (params.top_k > 0 && order.size() > static_cast<size_t>(params.top_k)) {
    order.resize(static_cast<size_t>(params.top_k));
  }
  double sum = 0.0, before = 0.0;
  for (const size_t i : order) sum += weight(i);
  size_t kept = 0;
  for (; kept < order.size(); ++kept) {
    const double w = weight(order[kept]);
    if (kept > 0 && params.top_p < 1.0f && before >= params.top_p * sum) break;
    if (kept > 0 && w < params.min_p) break;
    before += w;
  }
  for (size_t i = 0; i < kept; ++i) out[order[i]] = weight(order[i]) / before;
  return out;
}

// The Gumbel-max draw by its definition.
inline int32_t draw(const std::vector<float>& logits, const std::vector<double>& kept,
                    const SamplingParams& params, uint64_t key) {
  int32_t best = -1;
  double best_score = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (kept[i] == 0.0) continue;
    const auto token = static_cast<int32_t>(i);
    const double score =
        logits[i] / static_cast<double>(params.temperature) + gumbel(uniform(key, token));
    if (best < 0 || score > best_score) best = token, best_score = score;
  }
  return best;
}

}  // namespace trireme::reference
