// One row of logits in host memory: scans, adjustments, local candidates.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/logit_rows.h"
#include "parallel/layout.h"

namespace trireme {

// How often each token occurs in a sequence, within one rank's part of the vocabulary.
class TokenCounts {
 public:
  using Entry = TokenCount;
  void clear();
  void add(int32_t token, bool generated);
  std::span<const Entry> entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<int32_t, size_t> index_;  // token -> entry
};

class LogitRow {
 public:
  // `logits` [vocab.count] is modified: NaN counts as -inf (never chosen), +inf as the largest
  // finite number. It must live as long as the row is used.
  void attach(float* logits, Part vocab);

  void adjust(const LogitAdjustment& adjustment);

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
  void restrict_to(std::span<const int32_t> allowed);
  void penalize(const LogitAdjustment& adjustment);
  void finish_adjustments();

  float* logits_ = nullptr;
  Part vocab_;
  std::vector<float> block_max_;  // of each 64 logits
  std::vector<std::pair<int32_t, float>>
      touched_;  // (index, raw logit), the first of an index wins
  bool rescan_ = false;
};

}  // namespace trireme
