// Random schedules against a simulated world: every sequence must end as if it had run alone,
// whatever was shared, preempted, aborted or in flight meanwhile, and nothing may leak or starve.
#include <gtest/gtest.h>

#include <cstdlib>
#include <deque>
#include <random>

#include "base/error.h"
#include "tests/unit/scheduler_sim.h"

namespace trireme {
namespace {

using sim::require;

class Schedule {
 public:
  Schedule(uint64_t seed, bool look_ahead)
      : random_(seed),
        look_ahead_(look_ahead),
        config_(random_config()),
        pool_(random_pool()),
        scheduler_(config_, pool_),
        worker_(config_, pool_) {}

  void run() {
    make_sequences();
    int64_t budget = 200;  // a bound on the steps: what all would take one by one, times a constant
    for (const Sequence& sequence : todo_) {
      budget += 12 * (static_cast<int64_t>(sequence.tokens.size()) + sequence.sampling.max_tokens);
    }
    while (!todo_.empty() || !scheduler_.idle()) {
      act();
      scheduler_.check_invariants();
      require(--budget > 0, "it takes too many steps");
    }
    finish();
  }

  // What the schedules covered.
  struct Coverage {
    int64_t preemptions = 0, hits = 0, resets = 0, long_lookups = 0, dropped_lookups = 0;
    int64_t rows_ahead = 0, ghosts = 0;
  };
  static Coverage covered;

 private:
  int32_t pick(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }
  bool chance(int32_t percent) { return pick(1, 100) <= percent; }

  SchedulerConfig random_config() {
    SchedulerConfig config;
    config.token_budget = chance(20) ? pick(1, 4) : pick(4, 40);
    config.max_chunk = pick(1, 20);
    config.max_rows = pick(1, 8);
    config.max_running = pick(1, 10);
    config.max_queue = pick(2, 12);
    config.max_context = pick(6, 60);
    config.look_ahead = look_ahead_;
    config.steps_in_flight = look_ahead_  ? (chance(50) ? 2 : pick(3, 5))
                             : chance(40) ? 1
                                          : pick(2, 4);
    config.max_lookups = chance(40) ? 0 : pick(1, 6);
    return config;
  }

  KvPoolConfig random_pool() {
    KvPoolConfig pool;
    pool.block_size = chance(50) ? pick(1, 4) : pick(1, 9);
    pool.groups.resize(pick(1, 3));
    pool.blocks.resize(pool.groups.size());
    pool.prefix_cache = chance(85);
    const int32_t all = (config_.max_context + pool.block_size - 1) / pool.block_size;
    for (size_t g = 0; g < pool.groups.size(); ++g) {
      pool.groups[g].window = chance(50) ? 0 : pick(1, 24);
      // From too small for the longest sequences to room for several.
      pool.blocks[g] = chance(20) ? pick(1, all) : all + pick(0, chance(50) ? 3 : 2 * all);
    }
    return pool;
  }

  void make_sequences() {
    std::vector<int32_t> base(config_.max_context);
    for (int32_t& token : base) token = pick(0, sim::kVocab - 1);
    const int32_t count = pick(1, 14);
    uint64_t group = 0;
    for (int32_t i = 1; i <= count; ++i) {
      Sequence sequence;
      sequence.id = i;
      sequence.priority = chance(75) ? 0 : pick(-1, 1);
      sequence.prefix_salt = chance(80) ? 0 : 1;
      sequence.prompt_tokens = pick(1, config_.max_context);
      sequence.tokens.assign(base.begin(), base.begin() + sequence.prompt_tokens);
      for (int32_t at = pick(0, sequence.prompt_tokens); at < sequence.prompt_tokens; ++at) {
        sequence.tokens[at] = pick(0, sim::kVocab - 1);
      }
      random_sampling(sequence.sampling);
      sequence.sampling.seed = i;
      sequence.group = 0;
      const int32_t outputs = chance(15) ? pick(2, 4) : 1;
      if (outputs > 1) sequence.group = ++group;
      for (int32_t n = 0; n < outputs; ++n, i += n < outputs) {
        sequence.id = sequence.sampling.seed = i;
        sequence.output_index = n;
        todo_.push_back(resumed(sequence));
      }
    }
  }

  void random_sampling(SamplingParams& sampling) {
    sampling.max_tokens = chance(10) ? pick(0, 1) : pick(1, 30);
    sampling.min_tokens = chance(80) ? 0 : pick(0, 8);
    if (chance(40)) sampling.stop_ids.push_back(pick(0, sim::kVocab - 1));
    if (chance(20)) sampling.repetition_penalty = 1.5f;
    if (chance(15)) sampling.prompt_logprobs = 0;
  }

  // Sometimes the sequence comes with some of the tokens that it would generate.
  Sequence resumed(Sequence sequence) {
    if (!chance(25)) return sequence;
    const sim::Truth truth = sim::run_alone(sequence, config_.max_context);
    const auto all = static_cast<int32_t>(truth.tokens.size());
    sequence.tokens.assign(truth.tokens.begin(),
                           truth.tokens.begin() + pick(sequence.prompt_tokens, all));
    return sequence;
  }

  void act() {
    const int32_t dice = pick(1, 100);
    if (!todo_.empty() && (dice <= 25 || scheduler_.idle())) return add();
    if (dice <= 28) return abort();
    if (dice == 29 && chance(20)) return reset();
    if (dice <= 65 || results_.empty()) return plan();
    apply();
  }

  void add() {
    const Sequence sequence = todo_.front();
    bool added = false;
    const bool possible = can_ever_run(sequence);
    worker_.truths[sequence.id] = sim::run_alone(sequence, config_.max_context);
    try {
      added = scheduler_.add(sequence);
      require(possible, "a sequence was taken that can never run");
    } catch (const Error& error) {
      require(!possible && error.code() == ErrorCode::kInvalidArgument, error.what());
      todo_.pop_front();
      return;
    }
    if (!added) {
      require(scheduler_.stats().waiting >= config_.max_queue,
              "refused, but the queue is not full");
      return plan();
    }
    todo_.pop_front();
    State& state = states_[sequence.id];
    state.arrival = static_cast<int32_t>(states_.size());
    state.output.assign(sequence.tokens.begin() + sequence.prompt_tokens, sequence.tokens.end());
    take_pending();
  }

  bool can_ever_run(const Sequence& sequence) const {
    const int32_t longest =
        std::min(config_.max_context, sequence.prompt_tokens + sequence.sampling.max_tokens);
    const int32_t kv = std::max<int32_t>(sequence.tokens.size(), longest - 1);
    for (size_t g = 0; g < pool_.groups.size(); ++g) {
      int32_t most = 0;  // the most blocks that any one query touches
      for (int32_t at = 0; at < kv; ++at) {
        const int32_t window = pool_.groups[g].window;
        const int32_t first = window == 0 ? 0 : std::max(0, at - window + 1);
        most = std::max(most, at / pool_.block_size - first / pool_.block_size + 1);
      }
      // The pool asks for the worst alignment of a window, which a short sequence may not reach.
      if (most > pool_.blocks[g]) return false;
    }
    return true;
  }

  void abort() {
    if (states_.empty()) return;
    const auto id = static_cast<SequenceId>(pick(1, 20));
    const auto found = states_.find(id);
    if (found != states_.end()) found->second.aborted = true;
    scheduler_.abort(id);
    take_pending();
  }

  void reset() {
    scheduler_.reset_world();
    results_.clear();
    was_reset_ = true;
    ++covered.resets;
    take_pending();
  }

  void plan() {
    StepPlan plan;
    const bool full = static_cast<int32_t>(results_.size()) >= config_.steps_in_flight;
    const bool nothing = scheduler_.stats().waiting == 0 && scheduler_.stats().running == 0;
    const size_t admitted = worker_.admitted.size();
    const SchedulerStats before = scheduler_.stats();
    const bool planned = scheduler_.next(plan);
    check_lookups(plan, before, scheduler_.stats());
    if (!planned) {
      require(full || nothing || !results_.empty(), "stuck: nothing in flight and nothing planned");
      require(!scheduler_.can_plan(), "can_plan() after next() found nothing");
      if (!results_.empty()) apply();
      return;
    }
    require(!full, "more plans than steps_in_flight");
    std::vector<std::byte> bytes;
    encode(plan, bytes);
    const std::vector<std::byte> out = worker_.execute(bytes);
    decode(out, results_.emplace_back());
    for (size_t i = admitted; i < worker_.admitted.size(); ++i)
      check_admission(worker_.admitted[i]);
  }

  // However long the prompts are, one step looks up no more than it may; but all of a prompt where
  // there is nothing else to compute, or where an earlier search for it was given up.
  void check_lookups(const StepPlan& plan, const SchedulerStats& before,
                     const SchedulerStats& after) {
    const auto looked = static_cast<int64_t>(after.lookups - before.lookups);
    covered.long_lookups += looked > 0 && plan.admitted.empty();
    if (plan.rows.size() == plan.admitted.size() || after.lookups_dropped > 0) return;
    int64_t windows = 0;  // seen whole, before the work is counted
    for (const KvSpec& group : pool_.groups) windows += group.window / pool_.block_size + 2;
    require(looked <= lookup_budget(config_) + 2 * windows, "a step looks up too many blocks");
  }

  // Nobody is let in before one that ranks before it (siblings of a request wait for each other).
  void check_admission(SequenceId id) {
    State& state = states_.at(id);
    const Sequence& given = worker_.truths.at(id).given;
    ++state.admissions;
    if (state.admissions > 1) return;
    for (const auto& [other, other_state] : states_) {
      const Sequence& rival = worker_.truths.at(other).given;
      if (other_state.admissions > 0 || other_state.aborted || other_state.ended) continue;
      if (rival.group != 0) continue;
      const bool before = rival.priority > given.priority ||
                          (rival.priority == given.priority && other_state.arrival < state.arrival);
      require(!before, "sequence " + std::to_string(id) + " overtook " + std::to_string(other));
    }
  }

  void apply() {
    const StepResult result = std::move(results_.front());
    results_.pop_front();
    worker_.applied();
    std::vector<SequenceEvent> events;
    scheduler_.apply(result, events);
    for (const SequenceEvent& event : events) take(event);
  }

  void take_pending() {
    std::vector<SequenceEvent> events;
    scheduler_.take_events(events);
    for (const SequenceEvent& event : events) take(event);
  }

  void take(const SequenceEvent& event) {
    State& state = states_.at(event.id);
    const Sequence& given = worker_.truths.at(event.id).given;
    require(!state.ended, "an event after the end");
    if (event.first_admission) {
      require(!state.announced, "first_admission twice");
      state.announced = true;
      require(event.cached_tokens < given.size() + static_cast<int32_t>(state.output.size()),
              "nothing left to compute");
      require(
          event.cached_tokens == 0 || (pool_.prefix_cache && given.sampling.prompt_logprobs < 0),
          "a hit where none may be");
      covered.hits += event.cached_tokens > 0;
    }
    if (event.row != nullptr) {
      require(state.announced, "a row before first_admission");
      for (const TokenLogprob& entry : event.row->prompt) state.prompt.push_back(entry.token);
      if (event.row->token >= 0) state.output.push_back(event.row->token);
    }
    if (event.finish == FinishReason::kNone) return;
    state.ended = true;
    state.finish = event.finish;
  }

  void finish() {
    const SchedulerStats stats = scheduler_.stats();
    require(stats.kv.used == 0, "blocks are still used");
    require(stats.waiting == 0 && stats.running == 0, "sequences are left");
    covered.preemptions += static_cast<int64_t>(stats.preemptions);
    covered.dropped_lookups += static_cast<int64_t>(stats.lookups_dropped);
    covered.rows_ahead += static_cast<int64_t>(stats.rows_ahead);
    covered.ghosts += static_cast<int64_t>(stats.ghosts);
    require(worker_.rows_ahead == static_cast<int64_t>(stats.rows_ahead), "rows_ahead");
    for (const auto& [id, state] : states_) {
      const sim::Truth& truth = worker_.truths.at(id);
      const std::vector<int32_t> wanted(truth.tokens.begin() + truth.given.prompt_tokens,
                                        truth.tokens.end());
      require(state.ended, "no terminal event");
      if (state.finish == FinishReason::kAborted) {
        require(state.aborted, "aborted unasked");
        require(state.output.size() <= wanted.size() &&
                    std::equal(state.output.begin(), state.output.end(), wanted.begin()),
                "wrong output before the abort");
        continue;
      }
      require(state.finish == truth.finish, "wrong finish reason");
      require(state.output == wanted, "wrong output");
      if (truth.given.sampling.prompt_logprobs < 0) continue;
      const std::vector<int32_t> targets(truth.tokens.begin() + 1,
                                         truth.tokens.begin() + truth.given.prompt_tokens);
      require(state.prompt == targets, "wrong prompt log-probabilities");
    }
    check_first_ranked();
  }

  // The first-ranked of all is never preempted.
  void check_first_ranked() const {
    if (was_reset_ || states_.empty()) return;
    const auto first = std::min_element(states_.begin(), states_.end(), [&](auto& a, auto& b) {
      const int32_t pa = worker_.truths.at(a.first).given.priority;
      const int32_t pb = worker_.truths.at(b.first).given.priority;
      return pa != pb ? pa > pb : a.second.arrival < b.second.arrival;
    });
    require(first->second.admissions <= 1, "the first-ranked sequence was preempted");
  }

  struct State {
    int32_t arrival = 0;
    int32_t admissions = 0;
    bool aborted = false;
    bool announced = false;
    bool ended = false;
    FinishReason finish = FinishReason::kNone;
    std::vector<int32_t> output;
    std::vector<int32_t> prompt;  // reported targets
  };

  std::mt19937_64 random_;
  const bool look_ahead_;
  SchedulerConfig config_;
  KvPoolConfig pool_;
  Scheduler scheduler_;
  sim::Worker worker_;
  std::deque<Sequence> todo_;
  std::deque<StepResult> results_;
  std::map<SequenceId, State> states_;
  bool was_reset_ = false;
};

Schedule::Coverage Schedule::covered;

// TRIREME_SCHEDULES sets another number, TRIREME_SCHEDULE_SEED the first seed.
uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr uint64_t kSchedules = 2000;
#else
constexpr uint64_t kSchedules = 12000;
#endif

class SchedulerProperty : public testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(LookAhead, SchedulerProperty, testing::Bool(),
                         [](const auto& test) { return test.param ? "on" : "off"; });

TEST_P(SchedulerProperty, RandomSchedulesEndAsIfEachSequenceRanAlone) {
  Schedule::covered = {};
  const uint64_t count = from_environment("TRIREME_SCHEDULES", kSchedules);
  const uint64_t first = from_environment("TRIREME_SCHEDULE_SEED", 1);
  int failures = 0;
  for (uint64_t seed = first; seed < first + count && failures < 3; ++seed) {
    try {
      Schedule(seed, GetParam()).run();
    } catch (const std::exception& error) {
      ADD_FAILURE() << "seed " << seed << ": " << error.what();
      ++failures;
    }
  }
  const Schedule::Coverage& covered = Schedule::covered;
  printf(
      "preemptions %ld, sequences with hits %ld, worlds reset %ld, look-ups of several steps %ld, "
      "given up %ld, rows ahead %ld, ghosts %ld\n",
      covered.preemptions, covered.hits, covered.resets, covered.long_lookups,
      covered.dropped_lookups, covered.rows_ahead, covered.ghosts);
  if (count < 1000) return;
  EXPECT_GT(covered.preemptions, static_cast<int64_t>(count / 10));
  EXPECT_GT(covered.hits, static_cast<int64_t>(count / 10));
  EXPECT_GT(covered.resets, 0);
  EXPECT_GT(covered.long_lookups, static_cast<int64_t>(count / 10));
  EXPECT_GT(covered.dropped_lookups, static_cast<int64_t>(count / 100));
  EXPECT_EQ(covered.rows_ahead > static_cast<int64_t>(count), GetParam());
  EXPECT_EQ(covered.ghosts > static_cast<int64_t>(count / 10), GetParam());
}

}  // namespace
}  // namespace trireme
