// What a step computes, and how sequences begin and end.
#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <deque>

#include "base/error.h"
#include "tests/unit/scheduler_fixture.h"

namespace trireme::test {
namespace {

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

TEST_F(SchedulerTest, DecodeRowsLeaveARowToPrefillInEveryPlan) {
  SchedulerConfig config = small_config();
  config.steps_in_flight = 2;
  config.max_rows = 2;
  start(config, small_pool());
  for (SequenceId id = 1; id <= 3; ++id) {
    scheduler_->add(sequence_of(id, 4, 30, 100 * static_cast<int32_t>(id)));
  }
  for (int i = 0; i < 3; ++i) step();  // all three decode
  scheduler_->add(sequence_of(4, 60, 4, 500));
  std::deque<StepPlan> flying = {plan()};  // two rows wait for a token, the third one follows
  int32_t computed = 0;
  while (computed < 60) {
    flying.push_back(plan());
    const PlanRow& last = flying.back().rows.back();
    ASSERT_EQ(flying.back().rows.size(), 2u);
    ASSERT_GT(last.count, 1) << "after " << computed;
    computed = last.position + last.count;
    apply(flying.front());
    flying.pop_front();
  }
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

TEST_F(SchedulerTest, StatsTellUsedFromAllocatedSlots) {
  start(small_config(), small_pool());
  scheduler_->add(sequence_of(1, 6, 20));
  step();
  EXPECT_EQ(scheduler_->stats().kv_tokens_used, 6);
  EXPECT_EQ(scheduler_->stats().kv_tokens_allocated, 8);
  EXPECT_EQ(scheduler_->stats().kv.used, 2);
}

}  // namespace
}  // namespace trireme::test
