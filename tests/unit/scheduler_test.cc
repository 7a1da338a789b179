#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "runtime/profiles.h"

namespace trireme {
namespace {

SchedulerConfig small_config() {
  SchedulerConfig config;
  config.token_budget = 16;
  config.max_chunk = 16;
  config.max_rows = 4;
  config.max_running = 4;
  config.max_queue = 8;
  config.max_context = 64;
  return config;
}

KvPoolConfig small_pool(int32_t blocks = 64) {
  KvPoolConfig pool;
  pool.block_size = 4;
  pool.blocks = {blocks};
  return pool;
}

// A prompt of consecutive token ids from `first` on.
Sequence sequence_of(SequenceId id, int32_t prompt, int32_t max_tokens, int32_t first = 0) {
  Sequence sequence;
  sequence.id = id;
  sequence.tokens.resize(prompt);
  std::iota(sequence.tokens.begin(), sequence.tokens.end(), first);
  sequence.prompt_tokens = prompt;
  sequence.sampling.max_tokens = max_tokens;
  sequence.sampling.seed = id;  // by which a test knows it again in a plan
  return sequence;
}

StepResult result_of(const StepPlan& plan, int32_t token = 7) {
  StepResult result{plan.step, {}};
  for (const PlanRow& row : plan.rows) {
    if (!row.sample && !row.prompt_logprobs) continue;
    RowResult& out = result.rows.emplace_back();
    out.slot = row.slot;
    if (row.sample) out.token = token;
  }
  return result;
}

class SchedulerTest : public testing::Test {
 protected:
  void start(const SchedulerConfig& config, const KvPoolConfig& pool) {
    scheduler_ = std::make_unique<Scheduler>(config, pool);
  }
  StepPlan plan() {
    StepPlan plan;
    EXPECT_TRUE(scheduler_->next(plan));
    return plan;
  }
  void apply(const StepPlan& plan, int32_t token = 7) {
    result_ = result_of(plan, token);
    events_.clear();
    scheduler_->apply(result_, events_);
    scheduler_->check_invariants();
  }
  StepPlan step(int32_t token = 7) {
    StepPlan made = plan();
    apply(made, token);
    return made;
  }
  void take_events() {
    events_.clear();
    scheduler_->take_events(events_);
  }
  static std::vector<uint64_t> admitted(const StepPlan& plan) {
    std::vector<uint64_t> ids;
    for (const SlotInit& init : plan.admitted) ids.push_back(init.sampling.seed);
    return ids;
  }

  std::unique_ptr<Scheduler> scheduler_;
  StepResult result_;
  std::vector<SequenceEvent> events_;
};

TEST_F(SchedulerTest, LongPromptIsChunkedAndDecodeRowsComeFirst) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 4, 20));
  step();
  scheduler_->add(sequence_of(2, 40, 20, 100));
  const StepPlan first = step();
  ASSERT_EQ(first.rows.size(), 2u);
  EXPECT_EQ(first.rows[0].count, 1);
  EXPECT_EQ(first.rows[1].count, 15);  // what the decode row leaves of the budget
  EXPECT_FALSE(first.rows[1].sample);
  EXPECT_EQ(step().rows[1].position, 15);
  const StepPlan last = step();
  EXPECT_EQ(last.rows[1].count, 10);
  EXPECT_TRUE(last.rows[1].sample);
}

TEST_F(SchedulerTest, FinishReasons) {
  start(small_config(), small_pool());
  Sequence stop = sequence_of(1, 4, 20);
  stop.sampling.stop_ids = {50, 51, 52, 53, 54, 7};  // more than fit the entry's first cache line
  stop.sampling.min_tokens = 2;
  scheduler_->add(stop);
  step(8);
  EXPECT_EQ(events_[0].finish, FinishReason::kNone);
  step(7);  // the sampler would not choose it as the second token: it does not count
  EXPECT_EQ(events_[0].finish, FinishReason::kNone);
  step(7);
  EXPECT_EQ(events_[0].finish, FinishReason::kStop);
  EXPECT_EQ(events_[0].row->token, 7);

  scheduler_->add(sequence_of(2, 62, 20));
  int32_t tokens = 0;
  do {
    step();
    tokens += events_.empty() || events_[0].row == nullptr ? 0 : 1;
  } while (events_.empty() || events_[0].finish == FinishReason::kNone);
  EXPECT_EQ(events_[0].finish, FinishReason::kLength);  // the context is full
  EXPECT_EQ(tokens, 2);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(SchedulerTest, WhatCanNeverRunIsRefused) {
  start(small_config(), small_pool(8));
  const auto refused = [&](Sequence sequence) {
    try {
      scheduler_->add(std::move(sequence));
    } catch (const Error& error) {
      return error.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_TRUE(refused(sequence_of(1, 65, 1)));
  EXPECT_TRUE(refused(sequence_of(1, 0, 1)));
  EXPECT_TRUE(refused(sequence_of(1, 10, -1)));
  EXPECT_TRUE(refused(sequence_of(1, 10, 24)));   // 33 positions: 9 blocks
  EXPECT_FALSE(refused(sequence_of(1, 10, 23)));  // the last token needs no KV
  Sequence wrong = sequence_of(2, 4, 1);
  wrong.prompt_tokens = 5;
  EXPECT_TRUE(refused(wrong));
  EXPECT_THROW(scheduler_->add(sequence_of(1, 4, 1)), Error);  // the id lives
}

TEST_F(SchedulerTest, TheQueueIsBounded) {
  start(small_config(), small_pool());
  for (SequenceId id = 1; id <= 8; ++id) EXPECT_TRUE(scheduler_->add(sequence_of(id, 4, 2)));
  EXPECT_FALSE(scheduler_->add(sequence_of(9, 4, 2)));
  step();  // four get a slot
  EXPECT_TRUE(scheduler_->add(sequence_of(9, 4, 2)));
}

TEST_F(SchedulerTest, APrefixHitLeavesTheLastTokenToCompute) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 8, 1));
  step();
  EXPECT_EQ(events_[0].cached_tokens, 0);
  scheduler_->add(sequence_of(2, 8, 1));
  const StepPlan hit = step();
  EXPECT_EQ(hit.rows[0].position, 4);  // two blocks are known, but the last token must be run
  EXPECT_EQ(hit.admitted[0].blocks[0].size(), 1u);
  EXPECT_TRUE(events_[0].first_admission);
  EXPECT_EQ(events_[0].cached_tokens, 4);
  Sequence salted = sequence_of(3, 8, 1);
  salted.prefix_salt = 1;
  scheduler_->add(salted);
  EXPECT_EQ(step().rows[0].position, 0);
  EXPECT_EQ(scheduler_->stats().kv.hit_tokens, 4);
  EXPECT_EQ(scheduler_->stats().kv.queried_tokens, 24);
}

// A pool that knows a prompt of 40 tokens (10 blocks), and a sequence that decodes meanwhile.
class SchedulerLookupTest : public SchedulerTest {
 protected:
  void start_with_known_prompt(int32_t blocks) {
    SchedulerConfig config = small_config();
    config.max_lookups = 4;
    start(config, small_pool(blocks));
    scheduler_->add(sequence_of(1, 40, 1));
    while (!scheduler_->idle()) step();
    scheduler_->add(sequence_of(2, 4, 30, 500));
    step();
  }
  int64_t used() const { return scheduler_->stats().kv.used; }
};

TEST_F(SchedulerLookupTest, ALongLookupGoesOnInTheNextStep) {
  start_with_known_prompt(64);
  scheduler_->add(sequence_of(3, 40, 5));
  scheduler_->add(sequence_of(4, 4, 5, 600));  // does not overtake
  for (const int64_t found : {4, 8}) {
    const StepPlan without = step();
    EXPECT_TRUE(without.admitted.empty());
    EXPECT_EQ(without.rows.size(), 1u);  // the other one decodes
    EXPECT_EQ(used(), 2 + found);
  }
  const StepPlan with = step();
  ASSERT_EQ(admitted(with), (std::vector<uint64_t>{3}));  // a step's share of newcomers, too
  EXPECT_EQ(with.admitted[0].blocks[0].size(), 9u);
  EXPECT_EQ(with.rows[1].position, 36);
  EXPECT_EQ(events_[1].cached_tokens, 36);
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{4}));
  EXPECT_EQ(scheduler_->stats().lookups, 1u + 9u);  // the first one found nothing
}

TEST_F(SchedulerLookupTest, AnAbortInBetweenLetsGo) {
  start_with_known_prompt(64);
  scheduler_->add(sequence_of(3, 40, 5));
  step();
  EXPECT_EQ(used(), 2 + 4);
  scheduler_->abort(3);
  scheduler_->check_invariants();
  EXPECT_EQ(used(), 2);
}

TEST_F(SchedulerLookupTest, ANewWorldLetsGo) {
  start_with_known_prompt(64);
  scheduler_->add(sequence_of(3, 40, 5));
  step();
  scheduler_->reset_world();
  scheduler_->check_invariants();
  EXPECT_EQ(used(), 0);
  const StepPlan after = step();
  EXPECT_EQ(admitted(after), (std::vector<uint64_t>{2}));
  EXPECT_EQ(used(), 2);
}

TEST_F(SchedulerLookupTest, ThePromptIsSearchedInOneGoWhereNothingElseRuns) {
  start_with_known_prompt(64);
  scheduler_->abort(2);
  scheduler_->add(sequence_of(3, 40, 5));
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{3}));
}

// A running sequence gets the blocks that a search holds before anybody is preempted for them.
TEST_F(SchedulerLookupTest, PressureMakesTheSearchBeginAgain) {
  start_with_known_prompt(11);
  scheduler_->add(sequence_of(3, 40, 1));
  int32_t cached = -1;
  while (!scheduler_->idle()) {
    step();
    for (const SequenceEvent& event : events_) {
      if (event.id == 3 && event.first_admission) cached = event.cached_tokens;
    }
  }
  EXPECT_EQ(scheduler_->stats().lookups_dropped, 1u);
  EXPECT_EQ(scheduler_->stats().preemptions, 0u);
  EXPECT_GE(cached, 0);
  EXPECT_EQ(used(), 0);
}

TEST_F(SchedulerTest, PreparingChangesNothingButTheTime) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 20, 1));
  while (!scheduler_->idle()) step();
  std::vector<Sequence> three = {sequence_of(2, 20, 1), sequence_of(3, 20, 1),
                                 sequence_of(4, 20, 1, 50)};
  scheduler_->prepare(three);
  EXPECT_EQ(three[0].prefix_hashes.size(), 5u);
  EXPECT_EQ(three[0].prefix_hashes, three[1].prefix_hashes);
  EXPECT_NE(three[0].prefix_hashes, three[2].prefix_hashes);
  three[1].prefix_salt = 1;
  scheduler_->prepare(three);
  EXPECT_NE(three[0].prefix_hashes, three[1].prefix_hashes);
  for (const int32_t hit : {16, 0, 0}) {
    scheduler_->add(std::move(three.front()));
    three.erase(three.begin());
    EXPECT_EQ(step().rows[0].position, hit);
    while (!scheduler_->idle()) step();
  }
}

// More blocks than a step releases: nobody notices but those who look at the pool.
TEST_F(SchedulerTest, BlocksOfEndedSequencesComeBackOverSeveralSteps) {
  SchedulerConfig config = small_config();
  config.max_lookups = 1;
  start(config, small_pool(20));
  for (SequenceId id = 1; id <= 2; ++id) {
    scheduler_->add(sequence_of(id, 4, 20, 100 * static_cast<int32_t>(id)));
  }
  for (int i = 0; i < 10; ++i) step();
  EXPECT_EQ(scheduler_->stats().kv.used, 4 + 3);
  scheduler_->abort(2);
  take_events();
  EXPECT_EQ(scheduler_->stats().kv.used, 4 + 1);
  scheduler_->check_invariants();
  step();
  EXPECT_EQ(scheduler_->stats().kv.used, 4);
  scheduler_->abort(1);
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(scheduler_->stats().kv.used, 0);
}

TEST_F(SchedulerTest, SiblingsWaitForThePromptOfTheFirst) {
  start(small_config(), small_pool());
  for (SequenceId id = 1; id <= 3; ++id) {
    Sequence sequence = sequence_of(id, 24, 4);
    sequence.group = 9;
    sequence.output_index = static_cast<uint32_t>(id - 1);
    scheduler_->add(sequence);
  }
  scheduler_->add(sequence_of(4, 4, 4, 500));  // somebody else need not wait
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{1}));
  const StepPlan second = step();
  // The first one's prompt is complete in this plan, which may already read it.
  EXPECT_EQ(admitted(second), (std::vector<uint64_t>{2, 3}));
  for (const SlotInit& init : second.admitted) EXPECT_EQ(init.blocks[0].size(), 5u);
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{4}));
}

TEST_F(SchedulerTest, WithoutTheFirstTheNextSiblingLeads) {
  start(small_config(), small_pool());
  for (SequenceId id = 1; id <= 3; ++id) {
    Sequence sequence = sequence_of(id, 24, 4);
    sequence.group = 9;
    scheduler_->add(sequence);
  }
  scheduler_->abort(1);
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{2}));
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{3}));
}

TEST_F(SchedulerTest, AbortsEndAtOnceOrWithThePlanInFlight) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 4, 20));
  scheduler_->add(sequence_of(2, 4, 20));
  scheduler_->abort(2);
  scheduler_->abort(77);  // unknown
  take_events();
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_EQ(events_[0].id, 2u);
  EXPECT_EQ(events_[0].finish, FinishReason::kAborted);
  const StepPlan flying = plan();
  scheduler_->abort(1);
  take_events();
  EXPECT_TRUE(events_.empty());
  EXPECT_GT(scheduler_->stats().kv.used, 0);
  apply(flying);
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_EQ(events_[0].finish, FinishReason::kAborted);
  EXPECT_EQ(events_[0].row, nullptr);
  EXPECT_EQ(scheduler_->stats().kv.used, 0);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(SchedulerTest, HigherPriorityTakesTheSlotOfALower) {
  SchedulerConfig config = small_config();
  config.max_running = 1;
  start(config, small_pool());
  scheduler_->add(sequence_of(1, 8, 20));
  step();
  Sequence urgent = sequence_of(2, 8, 2, 100);
  urgent.priority = 1;
  scheduler_->add(urgent);
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{2}));
  EXPECT_EQ(scheduler_->stats().preemptions, 1u);
  step();
  const StepPlan back = step();
  EXPECT_EQ(admitted(back), (std::vector<uint64_t>{1}));
  EXPECT_EQ(back.rows[0].position, 8);  // its own blocks were still there
  EXPECT_EQ(back.tokens, std::vector<int32_t>{7});
  EXPECT_TRUE(back.rows[0].sample);
}

TEST_F(SchedulerTest, TheLatestIsPreemptedAndGoesOnWithItsTokens) {
  KvPoolConfig pool = small_pool(6);
  pool.prefix_cache = false;
  start(small_config(), pool);
  scheduler_->add(sequence_of(1, 7, 9));
  scheduler_->add(sequence_of(2, 7, 9, 100));
  std::vector<int32_t> generated(3, 0);
  while (!scheduler_->idle()) {
    step();
    for (const SequenceEvent& event : events_) generated[event.id] += event.row != nullptr;
  }
  EXPECT_GE(scheduler_->stats().preemptions, 1u);
  EXPECT_EQ(generated[1], 9);
  EXPECT_EQ(generated[2], 9);
}

TEST_F(SchedulerTest, DecodeRowsSpreadOverThePlansInFlight) {
  SchedulerConfig config = small_config();
  config.steps_in_flight = 2;
  start(config, small_pool());
  for (SequenceId id = 1; id <= 4; ++id) scheduler_->add(sequence_of(id, 4, 20));
  step();
  const StepPlan first = plan();
  const StepPlan second = plan();
  EXPECT_EQ(first.rows.size(), 2u);
  EXPECT_EQ(second.rows.size(), 2u);
  StepPlan third;
  EXPECT_FALSE(scheduler_->can_plan());
  EXPECT_FALSE(scheduler_->next(third));
  apply(first);
  EXPECT_EQ(plan().rows.size(), 2u);
}

TEST_F(SchedulerTest, ChunksOfOnePromptFollowEachOtherInFlight) {
  SchedulerConfig config = small_config();
  config.steps_in_flight = 3;
  start(config, small_pool());
  scheduler_->add(sequence_of(1, 40, 20));
  const StepPlan first = plan();
  const StepPlan second = plan();
  const StepPlan third = plan();
  EXPECT_EQ(first.rows[0].count, 16);
  EXPECT_EQ(second.rows[0].position, 16);
  EXPECT_TRUE(third.rows[0].sample);
  scheduler_->abort(1);
  apply(first);
  apply(second);
  EXPECT_TRUE(events_.empty());
  apply(third);
  EXPECT_EQ(events_[0].finish, FinishReason::kAborted);
}

TEST_F(SchedulerTest, ScoringComputesThePromptAndSamplesNothing) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 20, 1));  // fills the cache, which scoring must not use
  step();
  step();
  Sequence score = sequence_of(2, 20, 0);
  score.sampling.prompt_logprobs = 0;
  scheduler_->add(score);
  const StepPlan first = step();
  EXPECT_EQ(first.rows[0].position, 0);
  EXPECT_TRUE(first.rows[0].prompt_logprobs);
  EXPECT_EQ(first.rows[0].next_token, 16);
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_NE(events_[0].row, nullptr);
  const StepPlan last = step();
  EXPECT_FALSE(last.rows[0].sample);
  EXPECT_EQ(last.rows[0].next_token, -1);
  EXPECT_EQ(events_[0].finish, FinishReason::kLength);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(SchedulerTest, AResumedSequenceGoesOnOrIsAlreadyOver) {
  start(small_config(), small_pool());
  Sequence resumed = sequence_of(1, 10, 4);
  resumed.prompt_tokens = 8;
  resumed.sampling.frequency_penalty = 0.5f;
  scheduler_->add(resumed);
  const StepPlan first = step();
  EXPECT_EQ(first.rows[0].count, 10);
  EXPECT_EQ(first.admitted[0].prompt_tokens, 8);
  EXPECT_EQ(first.admitted[0].history, resumed.tokens);
  step();
  EXPECT_EQ(events_[0].finish, FinishReason::kLength);  // four generated tokens, two of them new

  Sequence over = sequence_of(2, 10, 4);
  over.prompt_tokens = 8;
  over.sampling.stop_ids = {9};
  scheduler_->add(over);
  take_events();
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_EQ(events_[0].finish, FinishReason::kStop);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(SchedulerTest, AWindowedGroupFreesBlocksBehindItsWindow) {
  KvPoolConfig pool = small_pool();
  pool.groups = {{0}, {6}};
  pool.blocks = {64, 3};  // the second group could not hold 40 positions
  start(small_config(), pool);
  scheduler_->add(sequence_of(1, 30, 10));
  while (!scheduler_->idle()) {
    step();
    EXPECT_LE(scheduler_->stats().kv.used, 10 + 3);
  }
  EXPECT_EQ(scheduler_->stats().kv.used, 0);
}

TEST_F(SchedulerTest, ANewWorldRecomputesEverything) {
  SchedulerConfig config = small_config();
  config.steps_in_flight = 2;
  start(config, small_pool());
  scheduler_->add(sequence_of(1, 8, 20));
  scheduler_->add(sequence_of(2, 8, 20, 50));
  const StepPlan before = step();
  const StepPlan lost = plan();
  scheduler_->abort(2);
  scheduler_->reset_world();
  scheduler_->check_invariants();
  EXPECT_EQ(scheduler_->stats().kv.cached, 0);
  EXPECT_THROW(apply(lost), Error);
  const StepPlan after = plan();
  EXPECT_GT(after.epoch, before.epoch);
  EXPECT_EQ(admitted(after).front(), 1u);
  EXPECT_EQ(after.rows[0].position, 0);
  EXPECT_EQ(after.rows[0].count, 9);  // the sampled token is kept
}

TEST_F(SchedulerTest, AWrongResultIsRefusedAndChangesNothing) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 4, 20));
  const StepPlan flying = plan();
  const StepResult right = result_of(flying);
  StepResult wrong = right;
  wrong.step += 1;
  EXPECT_THROW(scheduler_->apply(wrong, events_), Error);
  wrong = right;
  wrong.rows.clear();
  EXPECT_THROW(scheduler_->apply(wrong, events_), Error);
  wrong = right;
  wrong.rows.push_back(right.rows[0]);
  EXPECT_THROW(scheduler_->apply(wrong, events_), Error);
  wrong = right;
  wrong.rows[0].slot += 1;
  EXPECT_THROW(scheduler_->apply(wrong, events_), Error);
  EXPECT_TRUE(events_.empty());
  scheduler_->apply(right, events_);
  EXPECT_EQ(events_.size(), 1u);
}

TEST_F(SchedulerTest, ASequenceWithNothingLeftToSampleEndsAlone) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 4, 20));
  scheduler_->add(sequence_of(2, 4, 20, 50));
  const StepPlan flying = plan();
  StepResult result = result_of(flying);
  result.rows[0].token = -1;
  scheduler_->apply(result, events_);
  scheduler_->check_invariants();
  ASSERT_EQ(events_.size(), 2u);
  EXPECT_EQ(events_[0].finish, FinishReason::kError);
  EXPECT_EQ(events_[1].finish, FinishReason::kNone);
  EXPECT_EQ(scheduler_->stats().running, 1);
}

// However much the newcomers bring along, a plan stays a message of bounded size.
TEST_F(SchedulerTest, LargeTokenListsEnterOneAfterTheOther) {
  start(small_config(), small_pool());
  for (SequenceId id = 1; id <= 3; ++id) {
    Sequence sequence = sequence_of(id, 2, 4);
    if (id < 3) sequence.sampling.banned_tokens.assign(2'200'000, 1);
    scheduler_->add(std::move(sequence));
  }
  EXPECT_EQ(step().admitted.size(), 1u);
  EXPECT_EQ(step().admitted.size(), 2u);
}

TEST_F(SchedulerTest, StatsTellUsedFromAllocatedSlots) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 6, 20));
  step();
  EXPECT_EQ(scheduler_->stats().kv_tokens_used, 6);
  EXPECT_EQ(scheduler_->stats().kv_tokens_allocated, 8);
  EXPECT_EQ(scheduler_->stats().kv.used, 2);
}

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "";
}

TEST(Profiles, AreNamed) {
  for (const char* name : {"latency", "balanced", "throughput"}) {
    EXPECT_NO_THROW(validate(profile(name)));
  }
  EXPECT_LT(profile("latency").token_budget, profile("balanced").token_budget);
  EXPECT_GT(profile("throughput").max_running, profile("balanced").max_running);
  EXPECT_NE(message_of([] { profile("fast"); }).find("latency, balanced, throughput"),
            std::string::npos);
}

TEST(Limits, AreBoundedOnBothSides) {
  struct Limit {
    const char* name;
    int32_t SchedulerConfig::*member;
    bool any_int;  // no upper end
  };
  using S = SchedulerConfig;
  for (const Limit& limit :
       {Limit{"token_budget", &S::token_budget, false}, Limit{"max_chunk", &S::max_chunk, false},
        Limit{"max_rows", &S::max_rows, false}, Limit{"max_running", &S::max_running, false},
        Limit{"max_queue", &S::max_queue, false}, Limit{"max_context", &S::max_context, true},
        Limit{"steps_in_flight", &S::steps_in_flight, false}}) {
    for (const int32_t bad : {INT32_MIN, 0, INT32_MAX}) {
      if (bad == INT32_MAX && limit.any_int) continue;
      SchedulerConfig config;
      config.*limit.member = bad;
      const std::string message = message_of([&] { validate(config); });
      EXPECT_NE(message.find(limit.name), std::string::npos) << message;
      EXPECT_NE(message.find(std::to_string(bad)), std::string::npos) << message;
    }
  }
  for (const int32_t bad : {0, INT32_MAX}) {
    KvPoolConfig pool;
    pool.blocks = {4};
    pool.block_size = bad;
    EXPECT_NE(message_of([&] { KvCachePool{pool}; }).find("block_size"), std::string::npos);
  }
}

}  // namespace
}  // namespace trireme
