// What the sampler knows about one row while it decides, and which candidates are kept.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/sampler.h"

namespace trireme {

enum class SamplerPath : uint8_t {
  kNone,  // scoring only
  kGreedy,
  kWhole,       // temperature alone: drawn where the logits are
  kMinP,        // as kWhole, once the global maximum is known
  kCandidates,  // top_k, top_p: drawn from a sorted prefix
};

// A row on its way through one call of sample().
struct SamplerWork {
  const SampleRow* row = nullptr;
  int32_t index = 0;  // of the logits
  SamplerPath path = SamplerPath::kNone;
  bool logprobs = false;
  int64_t top = 0;  // best raw logits wanted
  float raw_max = 0.0f;
  double raw_log_sum = 0.0;  // of e^logit over the vocabulary
  Draw draw;
  int64_t total_mass = 0;     // with temperature; where top_p needs it
  int64_t candidates = 0;     // to send per rank in the next round; 0: decided
  bool by_threshold = false;  // top_p keeps many: its threshold is searched instead
  int bucket = -1;            // where the threshold lies, once it is known
  int bucket_part = -1;       // and in which part of it
  int64_t bucket_before = 0;  // mass of the better buckets
  int64_t bucket_tokens = 0;  // in that bucket: the most on any rank
  std::vector<Candidate> local;
  std::vector<Candidate> merged;
  int32_t token = -1;
};

inline bool cuts_by_k(const SamplingParams& params, int64_t vocab) {
  return params.top_k > 0 && params.top_k < vocab;
}

inline SamplerPath path_of(const SamplingParams* params, int64_t vocab) {
  if (params == nullptr) return SamplerPath::kNone;
  if (params->greedy()) return SamplerPath::kGreedy;
  if (cuts_by_k(*params, vocab) || params->top_p < 1.0f) return SamplerPath::kCandidates;
  return params->min_p > 0.0f ? SamplerPath::kMinP : SamplerPath::kWhole;
}

inline float inverse_for_mass(const Draw& draw) {
  return static_cast<float>(std::min(draw.inverse_temperature, 1e30));
}

inline double needed_mass(const SamplerWork& work) {
  return static_cast<double>(work.row->params->top_p) * static_cast<double>(work.total_mass);
}

inline bool better_candidate(const Candidate& a, const Candidate& b) { return better(a, b); }

// How far the merged candidates are beyond doubt: a token that some rank held back is worse than
// the last one that rank sent.
struct CandidateCertainty {
  bool complete = true;  // nobody held anything back
  Candidate worst_sent;  // the best of the last candidates of the ranks that held some back
  void held_back(const Candidate& last) {
    if (complete || better(last, worst_sent)) worst_sent = last;
    complete = false;
  }
  size_t known(const std::vector<Candidate>& merged) const {
    if (complete) return merged.size();
    return static_cast<size_t>(
        std::upper_bound(merged.begin(), merged.end(), worst_sent, better_candidate) -
        merged.begin());
  }
};

// The length of the prefix of work.merged that top_k, top_p and min_p keep, or -1 if the
// candidates do not prove it yet.
int64_t kept_prefix(const SamplerWork& work, const CandidateCertainty& certainty, int64_t vocab);

// Gumbel-max over candidates that are all kept, best first.
Scored draw_from(const Draw& draw, std::span<const Candidate> candidates);

// work.draw.worst: the last candidate that top_p keeps, where work.merged has all of the bucket in
// which the mass is reached, in any order.
void set_threshold(SamplerWork& work);

}  // namespace trireme
