#include "runtime/worker_slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace trireme {
namespace {

SlotInit init_of(SlotId slot, int32_t prompt, std::vector<int32_t> history) {
  SlotInit init;
  init.slot = slot;
  init.prompt_tokens = prompt;
  init.sampling.presence_penalty = 1.0f;
  init.blocks = {{}};
  init.history = std::move(history);
  return init;
}

StepPlan plan_of(SlotId slot, int32_t position, std::vector<int32_t> tokens,
                 std::vector<int32_t> blocks) {
  StepPlan plan;
  plan.epoch = 1;
  plan.step = 1;
  PlanRow row;
  row.slot = slot;
  row.position = position;
  row.count = static_cast<int32_t>(tokens.size());
  row.block_count = static_cast<int32_t>(blocks.size());
  plan.rows = {row};
  plan.tokens = std::move(tokens);
  plan.blocks = std::move(blocks);
  return plan;
}

struct Counted {
  int32_t total = 0, generated = 0;
  bool operator==(const Counted&) const = default;
};
Counted counted(const WorkerSlot& slot, int32_t token) {
  for (const TokenCounts::Entry& entry : slot.counts.entries()) {
    if (entry.token == token) return {entry.total, entry.generated};
  }
  return {};
}

TEST(WorkerSlots, TablesGrowByTheDeltas) {
  WorkerSlots slots(2, 1, 4, {0, 100});
  StepPlan plan = plan_of(1, 4, {1, 2, 3, 4, 5}, {8, 9});
  plan.admitted = {init_of(1, 9, {})};
  plan.admitted[0].blocks = {{7}};  // a prefix hit
  slots.apply(plan);
  EXPECT_EQ(slots[1].tables[0], (std::vector<int32_t>{7, 8, 9}));
  slots.apply(plan_of(1, 9, {6}, {}));
  EXPECT_EQ(slots[1].tables[0].size(), 3u);
  slots.apply(plan_of(1, 12, {6}, {3}));
  EXPECT_EQ(slots[1].tables[0].back(), 3);
}

TEST(WorkerSlots, EveryTokenCountsOnce) {
  WorkerSlots slots(1, 1, 16, {10, 10});  // tokens 10 to 19 are ours
  StepPlan plan = plan_of(0, 0, {11, 11, 12, 5}, {0});
  plan.admitted = {init_of(0, 3, {11, 11, 12, 5, 13})};  // two generated before a preemption
  slots.apply(plan);                                     // recomputes what history has
  EXPECT_EQ(counted(slots[0], 11), (Counted{2, 0}));
  EXPECT_EQ(counted(slots[0], 12), (Counted{1, 0}));
  EXPECT_EQ(counted(slots[0], 5), (Counted{0, 0}));  // another rank's
  EXPECT_EQ(counted(slots[0], 13), (Counted{1, 1}));
  slots.apply(plan_of(0, 4, {13}, {}));
  EXPECT_EQ(counted(slots[0], 13), (Counted{1, 1}));
  slots.apply(plan_of(0, 5, {11}, {}));
  slots.apply(plan_of(0, 6, {13}, {}));
  EXPECT_EQ(counted(slots[0], 11), (Counted{3, 1}));
  EXPECT_EQ(counted(slots[0], 13), (Counted{2, 2}));
  plan.admitted = {init_of(0, 3, {12})};  // the slot is retaken
  plan.rows.clear();
  slots.apply(plan);
  EXPECT_EQ(counted(slots[0], 11), (Counted{0, 0}));
  EXPECT_EQ(counted(slots[0], 12), (Counted{1, 0}));
}

TEST(WorkerSlots, AnOpenTokenIsTheOneSampled) {
  WorkerSlots slots(1, 1, 16, {0, 100});
  StepPlan plan = plan_of(0, 0, {11, 12}, {0});
  plan.admitted = {init_of(0, 2, {11, 12})};
  EXPECT_THROW(slots.apply(plan_of(0, 2, {kSampled}, {})), Error);  // an empty slot
  slots.apply(plan);
  EXPECT_THROW(slots.apply(plan_of(0, 2, {kSampled}, {})), Error);  // it samples nothing
  plan.rows[0].sample = true;
  slots.apply(plan);
  slots.sampled(0, 2, 33);
  EXPECT_EQ(slots[0].newest, 33);
  EXPECT_EQ(counted(slots[0], 33), (Counted{1, 1}));
  EXPECT_THROW(slots.apply(plan_of(0, 3, {kSampled}, {})), Error);     // another position
  EXPECT_THROW(slots.apply(plan_of(0, 2, {kSampled, 4}, {})), Error);  // more than that token
  StepPlan ahead = plan_of(0, 2, {kSampled}, {});
  ahead.rows[0].sample = true;
  slots.apply(ahead);
  EXPECT_EQ(counted(slots[0], 33), (Counted{1, 1}));
  slots.sampled(0, 3, 33);
  EXPECT_EQ(counted(slots[0], 33), (Counted{2, 2}));
  slots.apply(plan_of(0, 3, {33}, {}));  // it may be named as well
  EXPECT_EQ(counted(slots[0], 33), (Counted{2, 2}));
}

// A token that is only on the device stays so until its own position is told, and a slot's next
// sequence knows nothing of it.
TEST(WorkerSlots, APendingTokenIsTheNewestPositions) {
  WorkerSlots slots(2, 1, 16, {0, 100});
  StepPlan plan = plan_of(1, 0, {1, 2, 3}, {0});
  plan.admitted = {init_of(1, 3, {})};
  plan.rows[0].sample = true;
  slots.apply(plan);
  const uint64_t first = slots[1].admission;
  EXPECT_EQ(slots[1].pending, -1);
  slots.queued(1, 3);
  EXPECT_EQ(slots[1].pending, 3);
  slots.queued(1, 4);  // the next step is launched before the first token is told
  slots.sampled(1, 3, 42);
  EXPECT_EQ(slots[1].pending, 4);
  slots.sampled(1, 4, 43);
  EXPECT_EQ(slots[1].pending, -1);
  EXPECT_EQ(slots[1].newest, 43);
  slots.queued(1, 5);
  plan.admitted = {init_of(1, 3, {})};
  slots.apply(plan);
  EXPECT_EQ(slots[1].pending, -1);
  EXPECT_NE(slots[1].admission, first);
}

TEST(WorkerSlots, BrokenPlansAreRefused) {
  const std::vector<std::function<void(StepPlan&)>> mistakes = {
      [](StepPlan& plan) { plan.rows[0].slot = 2; },
      [](StepPlan& plan) { plan.rows[0].slot = -1; },
      [](StepPlan& plan) { plan.rows[0].count = 0; },
      [](StepPlan& plan) { plan.rows[0].count = 3; },
      [](StepPlan& plan) { plan.rows[0].token_begin = 1; },
      [](StepPlan& plan) { plan.rows[0].token_begin = -1; },
      [](StepPlan& plan) { plan.rows[0].block_count = 9; },
      [](StepPlan& plan) { plan.rows[0].block_count = 0; },
      [](StepPlan& plan) { plan.rows[0].position = 16; },
      [](StepPlan& plan) { plan.rows[0].position = -1; },
      [](StepPlan& plan) { plan.admitted[0].slot = 5; },
      [](StepPlan& plan) { plan.admitted[0].blocks.clear(); },
      [](StepPlan& plan) { plan.admitted.clear(); },
  };
  for (size_t i = 0; i < mistakes.size(); ++i) {
    WorkerSlots slots(2, 1, 16, {0, 100});
    StepPlan plan = plan_of(0, 0, {1, 2}, {4});
    plan.admitted = {init_of(0, 2, {})};
    StepPlan good = plan;
    mistakes[i](plan);
    EXPECT_THROW(slots.apply(plan), Error) << "mistake " << i;
    EXPECT_NO_THROW(slots.apply(good)) << "mistake " << i;
  }
}

TEST(WorkerSlots, NewEpochBeginsWithEmptySlots) {
  WorkerSlots slots(1, 1, 16, {0, 100});
  StepPlan plan = plan_of(0, 0, {1}, {4});
  plan.admitted = {init_of(0, 1, {})};
  slots.apply(plan);
  StepPlan next = plan_of(0, 1, {1}, {});
  EXPECT_NO_THROW(slots.apply(next));
  next.epoch = 2;
  EXPECT_THROW(slots.apply(next), Error);
}

}  // namespace
}  // namespace trireme
