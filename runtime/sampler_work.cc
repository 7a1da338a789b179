#include "runtime/sampler_work.h"

namespace trireme {

int64_t kept_prefix(const SamplerWork& work, const CandidateCertainty& certainty, int64_t vocab) {
  const SamplingParams& params = *work.row->params;
  const auto& merged = work.merged;
  const size_t known = certainty.known(merged);
  const bool by_k = cuts_by_k(params, vocab);
  const size_t limit = by_k ? std::min(static_cast<size_t>(params.top_k), known) : known;
  const bool whole = certainty.complete || (by_k && known >= static_cast<size_t>(params.top_k));
  const bool by_p = params.top_p < 1.0f;
  double needed = 0.0;
  if (by_p) {
    int64_t mass = work.total_mass;
    if (by_k) {
      if (!whole) return -1;
      mass = 0;
      for (size_t i = 0; i < limit; ++i) {
        mass += mass_of(merged[i].logit, merged[0].logit, inverse_for_mass(work.draw));
      }
    }
    needed = static_cast<double>(params.top_p) * static_cast<double>(mass);
  }
  int64_t before = 0;
  for (size_t i = 0; i < limit; ++i) {
    if (i > 0 && by_p && static_cast<double>(before) >= needed) return static_cast<int64_t>(i);
    if (i > 0 && !work.draw.keeps(merged[i].logit)) return static_cast<int64_t>(i);
    if (by_p) before += mass_of(merged[i].logit, merged[0].logit, inverse_for_mass(work.draw));
  }
  const bool reached = by_p && !by_k && static_cast<double>(before) >= needed && limit > 0;
  return whole || reached ? static_cast<int64_t>(limit) : -1;
}

Scored draw_from(const Draw& draw, std::span<const Candidate> candidates) {
  Scored drawn;
  for (const Candidate& candidate : candidates) {
    const double tail = uniform(draw.key, candidate.token);
    if (drawn.token >= 0) {  // no larger tail can win: see gumbel()
      const double ahead =
          static_cast<double>(candidate.logit) * draw.inverse_temperature - drawn.score;
      if (ahead < 0.0 && tail > exp_nonpositive(static_cast<float>(ahead)) * 1.0001f) continue;
    }
    const Scored scored = draw.score(candidate, tail);
    if (better(scored, drawn)) drawn = scored;
  }
  return drawn;
}

// Halves the range that the threshold must lie in, without sorting the rest.
void set_threshold(SamplerWork& work) {
  const double needed = needed_mass(work);
  const auto mass = [&](const Candidate& one) {
    return mass_of(one.logit, static_cast<float>(work.draw.max), inverse_for_mass(work.draw));
  };
  int64_t before = work.bucket_before;
  auto begin = work.merged.begin(), end = work.merged.end();
  while (end - begin > 32) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, better_candidate);
    int64_t half = 0;
    for (auto one = begin; one != middle; ++one) half += mass(*one);
    if (static_cast<double>(before + half) >= needed) {
      end = middle;
    } else {
      begin = middle;
      before += half;
    }
  }
  std::sort(begin, end, better_candidate);
  for (; begin != end && static_cast<double>(before) < needed; ++begin) {
    work.draw.worst = *begin;
    before += mass(*begin);
  }
}

}  // namespace trireme
