// What a sampler keeps between its rounds. Private to runtime/sampler*.cc.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "runtime/logit_rows.h"
#include "runtime/sampler.h"
#include "runtime/sampler_exchange.h"
#include "runtime/sampler_work.h"

namespace trireme {

struct Sampler::State {
  State(Communicator& group, Part part, int64_t size, std::unique_ptr<LogitRows> of_logits)
      : tp(group),
        vocab(part),
        vocab_size(size),
        logits(of_logits != nullptr ? std::move(of_logits) : std::make_unique<HostLogitRows>()) {}

  void attach(MatrixView view, size_t rows);
  void begin(std::span<const SampleRow> rows);
  LogitQuestion& ask(const SamplerWork& work, LogitQuestion::Kind kind);
  LogitQuestion& ask_top(SamplerWork& work, int64_t count);
  LogitQuestion& ask_with_mass(const SamplerWork& work, LogitQuestion::Kind kind);
  void answer() { logits->answer(questions); }
  void raw_statistics();
  void adjust();
  void first_round();
  void candidate_round(bool with_mass);
  void mass_round();
  void find_buckets();
  void find_thresholds();
  void draw_locally(bool (*which)(const SamplerWork&));
  void choose_among_candidates(SamplerWork& work, const CandidateCertainty& certainty);
  void chosen_logprobs(std::vector<Sampled>& out);

  Communicator& tp;
  Part vocab;
  int64_t vocab_size;
  int64_t largest_part = 0;
  std::unique_ptr<LogitRows> logits;
  std::vector<LogitQuestion> questions;  // of one round, in the order of the rows
  std::vector<LogitAdjustment> adjustments;
  std::vector<LogitChoice> choices;
  std::vector<std::array<int64_t, kMassBuckets>> bucket_masses;
  Exchange exchange;
  std::vector<SamplerWork> works;  // grows to the most rows seen
  size_t count = 0;                // rows of this call
  std::span<SamplerWork> active() { return std::span(works).first(count); }
  template <typename Predicate>
  bool any(Predicate predicate) {
    return std::any_of(works.begin(), works.begin() + static_cast<std::ptrdiff_t>(count),
                       predicate);
  }
};

}  // namespace trireme
