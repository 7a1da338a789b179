// Who gets blocks and slots: pressure, preemption, priorities, windows, ends and new worlds.
#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/unit/scheduler_fixture.h"

namespace trireme::test {
namespace {

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

}  // namespace
}  // namespace trireme::test
