// Rows that are planned before their token is known. Every step is applied after the next one is
// planned, as the engine does it.
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>

#include "base/error.h"
#include "tests/unit/scheduler_fixture.h"

namespace trireme::test {
namespace {

constexpr int32_t kToken = 7;  // what every row samples unless a test says otherwise

class SchedulerAheadTest : public testing::Test {
 protected:
  void start(int32_t blocks = 64, int32_t max_running = 4, int32_t in_flight = 2) {
    config_.token_budget = 32;
    config_.max_rows = 8;
    config_.max_running = max_running;
    config_.max_context = 64;
    config_.steps_in_flight = in_flight;
    config_.look_ahead = true;
    KvPoolConfig pool;
    pool.block_size = 4;
    pool.blocks = {blocks};
    scheduler_ = std::make_unique<Scheduler>(config_, pool);
  }

  // Null if there is nothing to plan.
  const StepPlan* plan() {
    StepPlan made;
    if (!scheduler_->next(made)) return nullptr;
    scheduler_->check_invariants();
    for (const SlotInit& init : made.admitted) owner_[init.slot] = init.sampling.seed;
    for (const PlanRow& row : made.rows) planned_to_[owner_[row.slot]] = row.position + row.count;
    flying_.push_back(made);
    return &(last_ = std::move(made));
  }

  // Of the oldest plan in flight.
  void apply(int32_t token = kToken) {
    ASSERT_FALSE(flying_.empty());
    const StepPlan& oldest = flying_.front();
    result_ = result_of(oldest, token);
    flying_.pop_front();
    events_.clear();
    scheduler_->apply(result_, events_);
    scheduler_->check_invariants();
    for (const SequenceEvent& event : events_) {
      generated_[event.id] += event.row != nullptr && event.row->token >= 0;
      if (event.finish != FinishReason::kNone) ended_.push_back(event.id);
    }
  }

  // The engine's loop: the next step is planned before the last one is applied.
  void step() {
    if (plan() != nullptr && flying_.size() == 1) plan();
    apply();
  }
  void run_to_the_end() {
    for (int steps = 0; !scheduler_->idle(); ++steps) {
      ASSERT_LT(steps, 300);
      step();
    }
    EXPECT_EQ(scheduler_->stats().kv.used, 0);
  }

  int64_t used() const { return scheduler_->stats().kv.used; }

  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::deque<StepPlan> flying_;
  StepPlan last_;
  StepResult result_;
  std::vector<SequenceEvent> events_;
  std::map<SlotId, SequenceId> owner_;
  std::map<SequenceId, int32_t> planned_to_;  // the position after the newest row
  std::map<SequenceId, int32_t> generated_;
  std::vector<SequenceId> ended_;
};

TEST_F(SchedulerAheadTest, TheNextRowLeavesItsTokenOpen) {
  start();
  scheduler_->add(sequence_of(1, 6, 20));
  ASSERT_NE(plan(), nullptr);
  for (int32_t position = 6; position < 12; ++position) {
    const StepPlan* ahead = plan();
    ASSERT_NE(ahead, nullptr);
    ASSERT_EQ(ahead->rows.size(), 1u);
    EXPECT_EQ(ahead->rows[0].position, position);
    EXPECT_TRUE(ahead->rows[0].sample);
    EXPECT_EQ(ahead->tokens, std::vector<int32_t>{kSampled});
    EXPECT_FALSE(scheduler_->can_plan());
    apply(position);
    ASSERT_EQ(events_.size(), 1u);
    EXPECT_EQ(events_[0].row->token, position);
  }
  EXPECT_EQ(scheduler_->stats().rows_ahead, 6u);
  EXPECT_EQ(scheduler_->stats().ghosts, 0u);
}

// If the token came in time, the row has it.
TEST_F(SchedulerAheadTest, AKnownTokenIsNotLeftOpen) {
  start();
  scheduler_->add(sequence_of(1, 6, 20));
  for (int round = 0; round < 4; ++round) {
    ASSERT_NE(plan(), nullptr);
    apply();
  }
  EXPECT_EQ(last_.tokens, std::vector<int32_t>{kToken});
  EXPECT_EQ(scheduler_->stats().rows_ahead, 0u);
}

TEST_F(SchedulerAheadTest, AStopIdLeavesAGhostThatKeepsSlotAndBlocks) {
  start(64, 1);
  Sequence stops = sequence_of(1, 8, 20);
  stops.sampling.stop_ids = {kToken};
  scheduler_->add(stops);
  plan();
  plan();
  EXPECT_EQ(used(), 3);  // the row ahead took a block
  apply();
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_EQ(events_[0].finish, FinishReason::kStop);
  EXPECT_EQ(scheduler_->stats().running, 0);
  EXPECT_EQ(scheduler_->stats().waiting, 0);
  EXPECT_EQ(used(), 3);
  EXPECT_FALSE(scheduler_->idle());
  scheduler_->abort(1);                    // it is gone
  scheduler_->add(sequence_of(2, 4, 20));  // and its slot is not free yet
  EXPECT_EQ(scheduler_->stats().waiting, 1);
  EXPECT_EQ(plan(), nullptr);
  apply();
  EXPECT_TRUE(events_.empty());
  EXPECT_EQ(used(), 0);
  EXPECT_EQ(scheduler_->stats().ghosts, 1u);
  ASSERT_NE(plan(), nullptr);
  EXPECT_EQ(last_.admitted.size(), 1u);
  events_.clear();
  scheduler_->take_events(events_);
  EXPECT_TRUE(events_.empty());
}

TEST_F(SchedulerAheadTest, AnErrorLeavesAGhostToo) {
  start();
  scheduler_->add(sequence_of(1, 8, 20));
  plan();
  plan();
  apply(-1);
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_EQ(events_[0].finish, FinishReason::kError);
  apply();
  EXPECT_TRUE(events_.empty());
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(used(), 0);
}

TEST_F(SchedulerAheadTest, NoRowIsPlannedThatALimitExcludes) {
  start();
  scheduler_->add(sequence_of(1, 4, 3));
  scheduler_->add(sequence_of(2, 60, 20, 500));  // its context is full after four
  scheduler_->add(sequence_of(3, 4, 1, 600));
  run_to_the_end();
  // The last token's KV is never computed.
  EXPECT_EQ(planned_to_, (std::map<SequenceId, int32_t>{{1, 6}, {2, 63}, {3, 4}}));
  EXPECT_EQ(generated_, (std::map<SequenceId, int32_t>{{1, 3}, {2, 4}, {3, 1}}));
  EXPECT_EQ(scheduler_->stats().ghosts, 0u);
  EXPECT_EQ(scheduler_->stats().rows_ahead, 2u + 3u);
}

TEST_F(SchedulerAheadTest, EveryStepHasAllDecodeRows) {
  start();
  for (SequenceId id = 1; id <= 4; ++id) {
    scheduler_->add(sequence_of(id, 4, 20, 100 * static_cast<int32_t>(id)));
  }
  plan();
  for (int steps = 0; steps < 5; ++steps) {
    ASSERT_NE(plan(), nullptr);
    EXPECT_EQ(last_.rows.size(), 4u);
    apply();
  }
  SchedulerConfig one = config_;
  one.look_ahead = false;
  one.steps_in_flight = 1;
  config_.max_rows = one.max_rows = 2;
  EXPECT_EQ(slot_count(config_), slot_count(one));
}

// The block of a row ahead has a hash only when its token is known.
TEST_F(SchedulerAheadTest, ABlockFilledAheadIsFoundOnceItsTokensAreKnown) {
  start();
  scheduler_->add(sequence_of(1, 6, 40));
  Sequence same = sequence_of(2, 6, 2);
  same.tokens.insert(same.tokens.end(), {kToken, kToken, kToken});
  same.prompt_tokens = 9;
  plan();
  plan();   // position 6
  apply();  // its token is known
  plan();   // position 7, which fills the second block
  apply();  // now position 7's, too
  scheduler_->add(same);
  plan();
  ASSERT_EQ(last_.admitted.size(), 1u);
  EXPECT_EQ(last_.admitted[0].blocks[0].size(), 2u);
}

TEST_F(SchedulerAheadTest, ABlockOfAnOpenTokenIsNotFound) {
  start();
  scheduler_->add(sequence_of(1, 7, 40));
  Sequence same = sequence_of(2, 7, 2);
  same.tokens.insert(same.tokens.end(), {kToken, kToken});
  same.prompt_tokens = 9;
  plan();
  plan();  // position 7, which fills the second block
  apply(kToken + 1);
  scheduler_->add(same);
  plan();
  ASSERT_EQ(last_.admitted.size(), 1u);
  EXPECT_EQ(last_.admitted[0].blocks[0].size(), 1u);
}

// Blocks run out while every decode row goes ahead: the first-ranked goes on, the last is
// preempted, although it was always in flight.
TEST_F(SchedulerAheadTest, WhoLacksABlockIsNotHeldUpByThoseBehindIt) {
  start(6);
  scheduler_->add(sequence_of(1, 7, 12));
  scheduler_->add(sequence_of(2, 5, 16, 300));
  run_to_the_end();
  EXPECT_EQ(ended_, (std::vector<SequenceId>{1, 2}));
  EXPECT_EQ(generated_, (std::map<SequenceId, int32_t>{{1, 12}, {2, 16}}));
  EXPECT_GE(scheduler_->stats().preemptions, 1u);
}

TEST_F(SchedulerAheadTest, NobodyIsPreemptedForARowAhead) {
  start(4);
  scheduler_->add(sequence_of(1, 8, 3));
  scheduler_->add(sequence_of(2, 7, 2, 300));
  plan();
  EXPECT_EQ(used(), 4);
  // Position 8 of the first needs a fifth. The second has room, but is to be preempted.
  EXPECT_EQ(plan(), nullptr);
  EXPECT_EQ(scheduler_->stats().preemptions, 0u);
  run_to_the_end();
  EXPECT_EQ(generated_, (std::map<SequenceId, int32_t>{{1, 3}, {2, 2}}));
}

TEST_F(SchedulerAheadTest, AHigherPriorityGetsTheSlotOfOneThatIsAlwaysInFlight) {
  start(64, 1);
  scheduler_->add(sequence_of(1, 8, 30));
  step();
  step();
  Sequence urgent = sequence_of(2, 8, 2, 300);
  urgent.priority = 1;
  scheduler_->add(urgent);
  step();
  plan();
  EXPECT_EQ(scheduler_->stats().preemptions, 1u);
  ASSERT_EQ(last_.admitted.size(), 1u);
  EXPECT_EQ(last_.admitted[0].sampling.seed, 2u);
  run_to_the_end();
  EXPECT_EQ(ended_, (std::vector<SequenceId>{2, 1}));
  EXPECT_EQ(generated_, (std::map<SequenceId, int32_t>{{1, 30}, {2, 2}}));
}

TEST_F(SchedulerAheadTest, AnAbortedSequenceGoesNoFurther) {
  start();
  scheduler_->add(sequence_of(1, 8, 30));
  plan();
  scheduler_->abort(1);
  EXPECT_EQ(plan(), nullptr);
  apply();
  EXPECT_EQ(ended_, std::vector<SequenceId>{1});
  EXPECT_TRUE(scheduler_->idle());

  scheduler_->add(sequence_of(2, 8, 30));
  plan();
  plan();
  scheduler_->abort(2);
  apply();
  EXPECT_TRUE(events_.empty());  // a row of it is in flight
  apply();
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_EQ(events_[0].finish, FinishReason::kAborted);
  EXPECT_EQ(events_[0].row, nullptr);
  EXPECT_EQ(used(), 0);
}

// Scoring samples nothing: no row follows its last one.
TEST_F(SchedulerAheadTest, ARowThatSamplesNothingHasNoSuccessor) {
  start();
  Sequence score = sequence_of(1, 8, 20);
  score.tokens.push_back(kToken);  // a resumed sequence that had ended: only scores are missing
  score.sampling.stop_ids = {kToken};
  score.sampling.prompt_logprobs = 0;
  scheduler_->add(score);
  for (int steps = 0; !scheduler_->idle(); ++steps) {
    ASSERT_LT(steps, 5);
    step();
  }
  EXPECT_EQ(scheduler_->stats().rows_ahead, 0u);
  EXPECT_EQ(ended_, std::vector<SequenceId>{1});
}

TEST_F(SchedulerAheadTest, ANewWorldForgetsRowsAheadAndGhosts) {
  start();
  Sequence stops = sequence_of(1, 8, 20);
  stops.sampling.stop_ids = {kToken};
  scheduler_->add(stops);
  scheduler_->add(sequence_of(2, 6, 20, 300));
  plan();
  plan();
  apply();
  EXPECT_EQ(ended_, std::vector<SequenceId>{1});
  scheduler_->reset_world();
  scheduler_->check_invariants();
  flying_.clear();
  EXPECT_EQ(used(), 0);
  events_.clear();
  scheduler_->take_events(events_);
  EXPECT_TRUE(events_.empty());
  ASSERT_NE(plan(), nullptr);
  ASSERT_EQ(last_.rows.size(), 1u);
  EXPECT_EQ(last_.rows[0].count, 7);  // the prompt and the token that was known
  EXPECT_EQ(last_.tokens.back(), kToken);
  run_to_the_end();
  EXPECT_EQ(generated_[2], 20);
}

TEST(SchedulerAhead, NeedsTwoStepsInFlight) {
  SchedulerConfig config;
  config.look_ahead = true;
  config.steps_in_flight = 1;
  EXPECT_THROW(validate(config), Error);
  for (const int32_t steps : {2, 3, 9}) {
    config.steps_in_flight = steps;
    EXPECT_NO_THROW(validate(config));
  }
}

// Two stages: a share of the sequences for each, and the next rows of the first share before its
// tokens are known. Never those of a share whose turn it is not.
TEST_F(SchedulerAheadTest, SharesOfAPipelineTakeTurns) {
  start(64, 4, 3);
  for (SequenceId id = 1; id <= 4; ++id) {
    scheduler_->add(sequence_of(id, 4, 20, 100 * static_cast<int32_t>(id)));
  }
  while (plan() != nullptr && flying_.size() < 3) {
  }
  while (!flying_.empty()) apply();  // the prompts
  std::map<SequenceId, uint64_t> newest;
  uint64_t steps = 0;
  for (int round = 0; round < 10; ++round) {
    while (flying_.size() < 3) {
      const StepPlan* made = plan();
      ASSERT_NE(made, nullptr);
      EXPECT_EQ(made->rows.size(), 2u);
      ++steps;
      for (const PlanRow& row : made->rows) {
        const SequenceId id = owner_[row.slot];
        if (newest.contains(id)) {
          EXPECT_EQ(newest[id] + 2, made->step);
        }
        newest[id] = made->step;
        const bool open = made->tokens[static_cast<size_t>(row.token_begin)] == kSampled;
        EXPECT_EQ(open, steps > 2) << steps;
      }
    }
    apply();
  }
  run_to_the_end();
  for (SequenceId id = 1; id <= 4; ++id) EXPECT_EQ(generated_[id], 20);
}

}  // namespace
}  // namespace trireme::test
