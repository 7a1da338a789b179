// Prefix hits, the look-ups that find them, and siblings that wait for one.
#include <gtest/gtest.h>

#include "tests/unit/scheduler_fixture.h"

namespace trireme::test {
namespace {

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

TEST_F(SchedulerTest, SiblingsWaitForThePromptOfTheFirst) {
  SchedulerConfig config = small_config();
  config.token_budget = 64;  // there would be room for all of them at once
  start(config, small_pool());
  for (SequenceId id = 1; id <= 3; ++id) {
    Sequence sequence = sequence_of(id, 24, 4);
    sequence.group = 9;
    sequence.output_index = static_cast<uint32_t>(id - 1);
    scheduler_->add(sequence);
  }
  scheduler_->add(sequence_of(4, 4, 4, 500));  // somebody else need not wait
  EXPECT_EQ(admitted(step()), (std::vector<uint64_t>{1, 4}));
  const StepPlan second = step();
  // The first one's prompt is complete in this plan, which may already read it.
  EXPECT_EQ(admitted(second), (std::vector<uint64_t>{2, 3}));
  for (const SlotInit& init : second.admitted) EXPECT_EQ(init.blocks[0].size(), 5u);
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

}  // namespace
}  // namespace trireme::test
