// One row of logits on one rank's part of the vocabulary: scans, adjustments, local candidates.
// All tokens here carry global ids. No collective happens here; sampler.cc joins the ranks.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "parallel/layout.h"
#include "runtime/sampling_params.h"

namespace trireme {

// How often each token occurs in a sequence, within one rank's part of the vocabulary.
class TokenCounts {
 public:
  struct Entry {
    int32_t token = 0;
    int32_t total = 0;  // prompt and generated
    int32_t generated = 0;
  };
  void clear();
  void add(int32_t token, bool generated);
  std::span<const Entry> entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<int32_t, size_t> index_;  // token -> entry
};

// Better candidates come first: higher logit, then lower id.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Probability mass in fixed point, so that sums do not depend on their order: e^x for x <= 0 as a
// multiple of 2^-40. The sum of up to 2^22 tokens fits.
inline constexpr double kMassUnit = 0x1p-40;
int64_t mass_of(float logit, float max, float inverse_temperature);

// Buckets of an eighth of a nat below the maximum; the last one takes all the rest. Monotone in the
// logit: what is in an earlier bucket is better.
inline constexpr int kMassBuckets = 256;

// A token that won a draw.
struct Scored {
  double score = -std::numeric_limits<double>::infinity();
  int32_t token = -1;
};
inline bool better(const Scored& a, const Scored& b) {
  if (b.token < 0 || a.token < 0) return a.token >= 0;
  return a.score != b.score ? a.score > b.score : a.token < b.token;
}

// The draw of one row: temperature and noise, the minimum of p / p_max, and the worst candidate
// that top_p keeps.
struct Draw {
  uint64_t key = 0;
  double inverse_temperature = 1.0;
  double max = 0.0;  // the row's largest logit, over all ranks
  double log_min_p = -std::numeric_limits<double>::infinity();

  Candidate worst{-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};

  bool keeps(float logit) const {
    return logit >= worst.logit &&
           (static_cast<double>(logit) - max) * inverse_temperature >= log_min_p;
  }
  bool keeps(const Candidate& one) const { return keeps(one.logit) && !better(worst, one); }
  Scored score(Candidate candidate) const;
};

class LogitRow {
 public:
  // `logits` [vocab.count] is modified: NaN counts as -inf (never chosen), +inf as the largest
  // finite number. It must live as long as the row is used.
  void attach(float* logits, Part vocab);

  // allowed/banned tokens, logit bias, penalties, and the ban of stop ids, in this order. Ids of
  // other ranks' parts are skipped.
  void adjust(const SamplingParams& params, const TokenCounts* counts, bool ban_stop_ids);

  // token -1 where no logit is above -inf.
  Candidate best() const;
  // Sum of mass_of() over this part.
  int64_t mass(float max, float inverse_temperature) const;
  // The same in kMassBuckets buckets by distance from `max`, added to `masses`.
  void bucket_masses(float max, float inverse_temperature, std::span<int64_t> masses) const;
  // The tokens of one bucket above -inf, in no order.
  void bucket(int which, float max, float inverse_temperature, std::vector<Candidate>& out) const;
  // The `count` best candidates above -inf, in order; fewer where there are fewer.
  // True if some were left out.
  bool top(int64_t count, std::vector<Candidate>& out) const;
  // Gumbel-max over the tokens that `draw` keeps.
  Scored draw(const Draw& draw) const;
  // The logit before adjust(); the token must be of this part.
  float raw(int32_t token) const;

  bool holds(int32_t token) const { return token >= vocab_.begin && token < vocab_.end(); }

 private:
  void scan();
  void scan_block(int64_t block);
  float* touch(int32_t token);
  void restrict_to(const std::vector<int32_t>& allowed);
  void penalize(const SamplingParams& params, const TokenCounts& counts);
  void finish_adjustments();

  float* logits_ = nullptr;
  Part vocab_;
  std::vector<float> block_max_;  // of each 64 logits
  std::vector<std::pair<int32_t, float>>
      touched_;  // (index, raw logit), the first of an index wins
  bool rescan_ = false;
};

}  // namespace trireme
