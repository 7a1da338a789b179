// Pure top_p that keeps many tokens: the threshold is searched by the masses of buckets of logits.
#include <algorithm>

#include "runtime/sampler_state.h"

namespace trireme {

// The bucket of logits in which the mass that top_p needs is reached; where there is one already,
// its part.
void Sampler::State::mass_round() {
  questions.clear();
  bucket_masses.assign(count, {});
  for (const SamplerWork& work : active()) {
    if (!work.by_threshold) continue;
    LogitQuestion& question = ask_with_mass(work, LogitQuestion::Kind::kBucketMasses);
    question.within = work.bucket;
    question.masses = bucket_masses[static_cast<size_t>(work.index)];
  }
  answer();
  exchange.clear();
  for (const LogitQuestion& question : questions) {
    exchange.put(bucket_masses[static_cast<size_t>(question.row)]);
  }
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (!work.by_threshold) continue;
    std::array<int64_t, kMassBuckets> masses{};
    for (int rank = 0; rank < tp.size(); ++rank) {
      const auto part = exchange.take<std::array<int64_t, kMassBuckets>>(rank);
      for (size_t b = 0; b < part.size(); ++b) masses[b] += part[b];
    }
    const double needed = needed_mass(work);
    int reached = 0;
    while (reached + 1 < kMassBuckets) {
      const int64_t mass = work.bucket_before + masses[static_cast<size_t>(reached)];
      if (static_cast<double>(mass) >= needed) break;
      work.bucket_before = mass;
      ++reached;
    }
    (work.bucket < 0 ? work.bucket : work.bucket_part) = reached;
  }
}

// Pure top_p that keeps many tokens, first half: the bucket with its threshold, and its tokens.
void Sampler::State::find_buckets() {
  mass_round();
  if (logits->splits_buckets()) mass_round();
  questions.clear();
  for (SamplerWork& work : active()) {
    if (!work.by_threshold) continue;
    LogitQuestion& question = ask_with_mass(work, LogitQuestion::Kind::kBucket);
    const bool split = work.bucket_part >= 0;
    question.within = split ? work.bucket : -1;
    question.which = split ? work.bucket_part : work.bucket;
    question.list = &work.local;
  }
  answer();
  exchange.clear();
  for (SamplerWork& work : active()) {
    if (work.by_threshold) exchange.put(static_cast<int64_t>(work.local.size()));
  }
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (!work.by_threshold) continue;
    work.bucket_tokens = 0;
    for (int rank = 0; rank < tp.size(); ++rank) {
      work.bucket_tokens = std::max(work.bucket_tokens, exchange.take<int64_t>(rank));
    }
  }
}

// Second half: that bucket's tokens in order give the last one that is kept.
void Sampler::State::find_thresholds() {
  exchange.clear();
  for (SamplerWork& work : active()) {
    if (!work.by_threshold) continue;
    work.local.resize(static_cast<size_t>(work.bucket_tokens));
    exchange.put_all(work.local);
  }
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (!work.by_threshold) continue;
    work.merged.clear();
    for (int rank = 0; rank < tp.size(); ++rank) {
      exchange.take_all(rank, static_cast<size_t>(work.bucket_tokens), work.merged);
    }
    std::erase_if(work.merged, [](const Candidate& candidate) { return candidate.token < 0; });
    set_threshold(work);
  }
}

}  // namespace trireme
