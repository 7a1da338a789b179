#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "runtime/rng.h"
#include "runtime/sampler_state.h"

namespace trireme {
namespace {

constexpr int64_t kFirstCandidates = 64;
constexpr int64_t kGrowth = 4;

}  // namespace

// The next question of this round; its answer is read in the same order.
LogitQuestion& Sampler::State::ask(const SamplerWork& work, LogitQuestion::Kind kind) {
  LogitQuestion& question = questions.emplace_back();
  question.kind = kind;
  question.row = work.index;
  return question;
}

LogitQuestion& Sampler::State::ask_top(SamplerWork& work, int64_t wanted) {
  LogitQuestion& question = ask(work, LogitQuestion::Kind::kTop);
  question.count = wanted;
  question.list = &work.local;
  return question;
}

// A question about masses after the temperature.
LogitQuestion& Sampler::State::ask_with_mass(const SamplerWork& work, LogitQuestion::Kind kind) {
  LogitQuestion& question = ask(work, kind);
  question.max = static_cast<float>(work.draw.max);
  question.inverse_temperature = inverse_for_mass(work.draw);
  return question;
}

void Sampler::State::attach(MatrixView view, size_t rows) {
  if (view.rows < static_cast<int64_t>(rows) || view.cols != vocab.count) {
    fail(ErrorCode::kInternal, "sampler: logits are [{},{}], expected [{},{}]", view.rows,
         view.cols, rows, vocab.count);
  }
  logits->attach(view.row_range(0, static_cast<int64_t>(rows)), vocab.begin);
}

void Sampler::State::begin(std::span<const SampleRow> rows) {
  count = rows.size();
  if (works.size() < count) works.resize(count);
  for (size_t i = 0; i < count; ++i) {
    SamplerWork& work = works[i];
    const SamplingParams* params = rows[i].params;
    work.row = &rows[i];
    work.index = static_cast<int32_t>(i);
    work.path = path_of(params, vocab_size);
    work.logprobs = params == nullptr ? rows[i].target >= 0 : params->logprobs >= 0;
    work.top = params == nullptr ? rows[i].top : params->logprobs;
    work.top = work.logprobs ? std::clamp<int64_t>(work.top, 0, vocab_size) : 0;
    work.token = params == nullptr ? rows[i].target : -1;
    work.total_mass = 0;
    work.draw = {};
    work.candidates = 0;
    work.by_threshold = false;
    work.bucket = work.bucket_part = -1;
    work.bucket_before = 0;
    if (params == nullptr || work.path == SamplerPath::kGreedy) continue;
    work.draw.key = draw_key(params->seed, rows[i].output_index,
                             static_cast<uint32_t>(rows[i].position), rows[i].draw);
    work.draw.inverse_temperature = 1.0 / static_cast<double>(params->temperature);
    if (params->min_p > 0.0f) {
      work.draw.log_min_p = std::log(std::min(1.0, static_cast<double>(params->min_p)));
    }
    if (work.path != SamplerPath::kCandidates) continue;
    const bool by_k = cuts_by_k(*params, vocab_size);
    work.candidates =
        by_k ? std::min<int64_t>(params->top_k, kFirstCandidates * kGrowth) : kFirstCandidates;
  }
}

// log of the sum, and the best of the raw logits, before anything is adjusted.
void Sampler::State::raw_statistics() {
  const auto wants = [](const SamplerWork& work) { return work.logprobs; };
  if (!any(wants)) return;
  questions.clear();
  for (const SamplerWork& work : active()) {
    if (work.logprobs) ask(work, LogitQuestion::Kind::kBest);
  }
  answer();
  exchange.clear();
  for (const LogitQuestion& question : questions) exchange.put(question.best);
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (!work.logprobs) continue;
    work.raw_max = -std::numeric_limits<float>::infinity();
    for (int rank = 0; rank < tp.size(); ++rank) {
      const auto best = exchange.take<Candidate>(rank);
      if (best.token >= 0) work.raw_max = std::max(work.raw_max, best.logit);
    }
  }
  questions.clear();
  for (SamplerWork& work : active()) {
    if (!work.logprobs) continue;
    ask(work, LogitQuestion::Kind::kMass).max = work.raw_max;
    if (work.top > 0 && largest_part > 0) ask_top(work, std::min(work.top, largest_part));
  }
  answer();
  exchange.clear();
  auto next = questions.begin();
  for (SamplerWork& work : active()) {
    if (!work.logprobs) continue;
    exchange.put(next++->mass);
    const int64_t sent = std::min(work.top, largest_part);
    if (sent == 0) continue;
    ++next;
    work.local.resize(static_cast<size_t>(sent));
    exchange.put_all(work.local);
  }
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (!work.logprobs) continue;
    int64_t mass = 0;
    work.merged.clear();
    for (int rank = 0; rank < tp.size(); ++rank) {
      mass += exchange.take<int64_t>(rank);
      for (int64_t i = 0; i < std::min(work.top, largest_part); ++i) {
        const auto candidate = exchange.take<Candidate>(rank);
        if (candidate.token >= 0) work.merged.push_back(candidate);
      }
    }
    work.raw_log_sum =
        static_cast<double>(work.raw_max) + std::log(static_cast<double>(mass) * kMassUnit);
    std::sort(work.merged.begin(), work.merged.end(), better_candidate);
    if (static_cast<int64_t>(work.merged.size()) > work.top) {
      work.merged.resize(static_cast<size_t>(work.top));
    }
  }
}

void Sampler::State::adjust() {
  adjustments.clear();
  for (const SamplerWork& work : active()) {
    if (work.path == SamplerPath::kNone) continue;
    const SamplingParams& params = *work.row->params;
    LogitAdjustment one;
    one.row = work.index;
    one.allowed = params.allowed_tokens;
    one.banned = params.banned_tokens;
    one.bias = params.logit_bias;
    if (work.row->counts != nullptr && params.needs_counts()) {
      one.counts = work.row->counts->entries();
      one.repetition_penalty = params.repetition_penalty;
      one.presence_penalty = params.presence_penalty;
      one.frequency_penalty = params.frequency_penalty;
      one.newest_slot = work.row->newest_slot;
    }
    if (work.row->position < params.min_tokens) one.stop = params.stop_ids;
    if (one.allowed.empty() && one.banned.empty() && one.bias.empty() && one.counts.empty() &&
        one.newest_slot < 0 && one.stop.empty()) {
      continue;
    }
    adjustments.push_back(one);
  }
  if (!adjustments.empty()) logits->adjust(adjustments);
}

// What one look at the local logits decides: greedy rows, and draws from the whole vocabulary.
// For the others it finds the global maximum.
void Sampler::State::first_round() {
  struct Lead {
    double score;
    Candidate best;
  };
  questions.clear();
  for (const SamplerWork& work : active()) {
    if (work.path == SamplerPath::kWhole) {
      ask(work, LogitQuestion::Kind::kDraw).draw = work.draw;
    } else if (work.path != SamplerPath::kNone) {
      ask(work, LogitQuestion::Kind::kBest);
    }
  }
  answer();
  exchange.clear();
  for (const LogitQuestion& question : questions) {
    const bool draws = question.kind == LogitQuestion::Kind::kDraw;
    exchange.put(draws ? Lead{question.drawn.score, {0.0f, question.drawn.token}}
                       : Lead{0.0, question.best});
  }
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (work.path == SamplerPath::kNone) continue;
    Candidate best;
    Scored drawn;
    for (int rank = 0; rank < tp.size(); ++rank) {
      const auto lead = exchange.take<Lead>(rank);
      if (lead.best.token < 0) continue;
      if (best.token < 0 || better(lead.best, best)) best = lead.best;
      const Scored scored{lead.score, lead.best.token};
      if (better(scored, drawn)) drawn = scored;
    }
    if (work.path == SamplerPath::kGreedy) work.token = best.token;
    if (work.path == SamplerPath::kWhole) work.token = drawn.token;
    work.draw.max = static_cast<double>(best.logit);
    if (best.token < 0) work.candidates = 0;  // nothing left
    if (best.token < 0 && work.path == SamplerPath::kMinP) work.path = SamplerPath::kGreedy;
  }
}

// Rows whose limits are thresholds that every rank knows: each draws from its own part.
void Sampler::State::draw_locally(bool (*which)(const SamplerWork&)) {
  if (!any(which)) return;
  questions.clear();
  for (const SamplerWork& work : active()) {
    if (which(work)) ask(work, LogitQuestion::Kind::kDraw).draw = work.draw;
  }
  answer();
  exchange.clear();
  for (const LogitQuestion& question : questions) exchange.put(question.drawn);
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (!which(work)) continue;
    Scored drawn;
    for (int rank = 0; rank < tp.size(); ++rank) {
      const auto scored = exchange.take<Scored>(rank);
      if (better(scored, drawn)) drawn = scored;
    }
    work.token = drawn.token;
  }
}

// One round of candidates for the rows that are not decided, all in one message.
void Sampler::State::candidate_round(bool with_mass) {
  const auto wants_mass = [&](const SamplerWork& work) {
    const SamplingParams& params = *work.row->params;
    return with_mass && params.top_p < 1.0f && !cuts_by_k(params, vocab_size);
  };
  questions.clear();
  for (SamplerWork& work : active()) {
    if (work.candidates == 0) continue;
    work.candidates = std::min(work.candidates, largest_part);
    ask_top(work, work.candidates);
    if (wants_mass(work)) ask_with_mass(work, LogitQuestion::Kind::kMass);
  }
  answer();
  exchange.clear();
  auto next = questions.begin();
  for (SamplerWork& work : active()) {
    if (work.candidates == 0) continue;
    work.local.resize(static_cast<size_t>(work.candidates));
    exchange.put(next++->left_out);
    if (with_mass) exchange.put(wants_mass(work) ? next++->mass : int64_t{0});
    exchange.put_all(work.local);
  }
  exchange.gather(tp);
  for (SamplerWork& work : active()) {
    if (work.candidates == 0) continue;
    CandidateCertainty certainty;
    work.merged.clear();
    for (int rank = 0; rank < tp.size(); ++rank) {
      const bool truncated = exchange.take<bool>(rank);
      if (with_mass) work.total_mass += exchange.take<int64_t>(rank);
      Candidate last;
      for (int64_t i = 0; i < work.candidates; ++i) {
        const auto candidate = exchange.take<Candidate>(rank);
        if (candidate.token < 0) continue;
        work.merged.push_back(candidate);
        last = candidate;
      }
      if (truncated) certainty.held_back(last);
    }
    std::sort(work.merged.begin(), work.merged.end(), better_candidate);
    choose_among_candidates(work, certainty);
  }
}

void Sampler::State::choose_among_candidates(SamplerWork& work,
                                             const CandidateCertainty& certainty) {
  const int64_t kept = kept_prefix(work, certainty, vocab_size);
  if (kept < 0) {
    work.by_threshold = !cuts_by_k(*work.row->params, vocab_size);
    work.candidates = work.by_threshold ? 0 : work.candidates * kGrowth;
    return;
  }
  work.candidates = 0;
  work.token = draw_from(work.draw, std::span(work.merged).first(static_cast<size_t>(kept))).token;
}

// The raw logit of the chosen (or target) token comes from the rank that holds it.
void Sampler::State::chosen_logprobs(std::vector<Sampled>& out) {
  const auto wants = [](const SamplerWork& work) { return work.logprobs && work.token >= 0; };
  if (!any(wants)) return;
  const auto holds = [&](const SamplerWork& work) {
    return work.token >= vocab.begin && work.token < vocab.end();
  };
  questions.clear();
  for (const SamplerWork& work : active()) {
    if (wants(work) && holds(work)) ask(work, LogitQuestion::Kind::kRaw).token = work.token;
  }
  answer();
  exchange.clear();
  auto next = questions.begin();
  for (const SamplerWork& work : active()) {
    if (!wants(work)) continue;
    struct Held {
      float logit;
      int32_t held;
    };
    exchange.put(holds(work) ? Held{next++->raw, 1} : Held{0.0f, 0});
  }
  exchange.gather(tp);
  for (size_t i = 0; i < count; ++i) {
    if (!wants(works[i])) continue;
    float logit = -std::numeric_limits<float>::infinity();
    for (int rank = 0; rank < tp.size(); ++rank) {
      const auto value = exchange.take<float>(rank);
      if (exchange.take<int32_t>(rank) != 0) logit = value;
    }
    out[i].logprob = static_cast<float>(static_cast<double>(logit) - works[i].raw_log_sum);
  }
}

Sampler::Sampler(Communicator& tp, Part vocab, int64_t vocab_size, std::unique_ptr<LogitRows> rows)
    : state_(std::make_unique<State>(tp, vocab, vocab_size, std::move(rows))) {
  state_->exchange.put(vocab.count);
  state_->exchange.gather(tp);
  for (int rank = 0; rank < tp.size(); ++rank) {
    state_->largest_part = std::max(state_->largest_part, state_->exchange.take<int64_t>(rank));
  }
}

Sampler::~Sampler() = default;

void Sampler::sample(MatrixView logits, std::span<const SampleRow> rows,
                     std::vector<Sampled>& out) {
  State& state = *state_;
  out.resize(rows.size());
  state.attach(logits, rows.size());
  state.begin(rows);
  state.raw_statistics();
  for (size_t i = 0; i < rows.size(); ++i) {
    out[i].top.clear();
    out[i].logprob = 0.0f;
    if (!state.works[i].logprobs) continue;
    for (const Candidate& candidate : state.works[i].merged) {
      const double logprob = static_cast<double>(candidate.logit) - state.works[i].raw_log_sum;
      out[i].top.push_back({candidate.token, static_cast<float>(logprob)});
    }
  }
  if (state.any([](const SamplerWork& work) { return work.path != SamplerPath::kNone; })) {
    state.adjust();
    state.first_round();
  }
  state.draw_locally([](const SamplerWork& work) { return work.path == SamplerPath::kMinP; });
  const auto undecided = [](const SamplerWork& work) { return work.candidates > 0; };
  for (bool first = true; state.any(undecided); first = false) state.candidate_round(first);
  const auto by_threshold = [](const SamplerWork& work) { return work.by_threshold; };
  if (state.any(by_threshold)) {
    state.find_buckets();
    state.find_thresholds();
    state.draw_locally(by_threshold);
  }
  for (size_t i = 0; i < rows.size(); ++i) out[i].token = state.works[i].token;
  state.chosen_logprobs(out);
}

}  // namespace trireme
