// Several plans in flight, as a pipeline has them: every stage has work as long as there is any, and
// plans are as large as each other, whatever the lengths of prompts and outputs.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <set>

#include "runtime/scheduler.h"

namespace trireme {
namespace {

class Pipeline {
 public:
  Pipeline(int32_t stages, bool look_ahead, int32_t budget = 256)
      : stages_(stages), in_flight_(stages + (look_ahead ? 1 : 0)) {
    SchedulerConfig config;
    config.token_budget = config.max_chunk = budget;
    config.max_rows = config.max_running = 128;
    config.max_context = 4096;
    config.steps_in_flight = in_flight_;
    config.look_ahead = look_ahead;
    KvPoolConfig pool;
    pool.block_size = 16;
    pool.blocks = {1 << 14};
    scheduler_ = std::make_unique<Scheduler>(config, pool);
  }

  void add(int32_t prompt, int32_t tokens) {
    Sequence sequence;
    sequence.id = ++added_;
    sequence.tokens.resize(static_cast<size_t>(prompt));
    std::iota(sequence.tokens.begin(), sequence.tokens.end(), static_cast<int32_t>(added_) * 10'000);
    sequence.prompt_tokens = prompt;
    sequence.sampling.max_tokens = tokens;
    ASSERT_TRUE(scheduler_->add(std::move(sequence)));
  }

  // Plans all that it can, then takes the oldest one's tokens.
  void step() {
    StepPlan plan;
    while (static_cast<int32_t>(flying_.size()) < in_flight_ && scheduler_->next(plan)) {
      flying_.push_back(plan);
      made_.push_back(plan);
    }
    most_in_flight_ = static_cast<int32_t>(flying_.size());
    if (flying_.empty()) return;
    StepResult result{flying_.front().step, {}};
    for (const PlanRow& row : flying_.front().rows) {
      if (!row.sample) continue;
      result.rows.emplace_back().slot = row.slot;
      result.rows.back().token = 1;
    }
    flying_.pop_front();
    std::vector<SequenceEvent> events;
    scheduler_->apply(result, events);
  }

  bool idle() const { return scheduler_->idle(); }
  int32_t running() const { return scheduler_->stats().running; }
  int32_t in_flight() const { return most_in_flight_; }  // before the last step's result
  // Of the newest plans, one for each stage.
  std::vector<const StepPlan*> round() const {
    std::vector<const StepPlan*> plans;
    for (size_t i = made_.size() - std::min(made_.size(), static_cast<size_t>(stages_));
         i < made_.size(); ++i) {
      plans.push_back(&made_[i]);
    }
    return plans;
  }

 private:
  int32_t stages_, in_flight_, most_in_flight_ = 0;
  SequenceId added_ = 0;
  std::unique_ptr<Scheduler> scheduler_;
  std::deque<StepPlan> flying_, made_;
};

struct Spread {
  size_t least = SIZE_MAX, most = 0;
};
template <typename Size>
Spread spread(const std::vector<const StepPlan*>& plans, Size size) {
  Spread found;
  for (const StepPlan* plan : plans) {
    found.least = std::min(found.least, size(*plan));
    found.most = std::max(found.most, size(*plan));
  }
  return found;
}
size_t rows_of(const StepPlan& plan) { return plan.rows.size(); }
size_t tokens_of(const StepPlan& plan) { return plan.tokens.size(); }

class SchedulerBalance : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(LookAhead, SchedulerBalance, testing::Bool(),
                         [](const auto& test) { return test.param ? "on" : "off"; });

TEST_P(SchedulerBalance, DecodeRowsAreSpreadEvenlyWhateverTheirNumber) {
  for (int32_t stages = 1; stages <= 5; ++stages) {
    for (int32_t sequences = 1; sequences <= 17; ++sequences) {
      SCOPED_TRACE(std::to_string(stages) + " stages, " + std::to_string(sequences) + " sequences");
      Pipeline pipeline(stages, GetParam());
      for (int32_t i = 0; i < sequences; ++i) pipeline.add(3 + i % 4, 60);
      for (int32_t i = 0; i < 4 * stages; ++i) pipeline.step();
      for (int32_t i = 0; i < 6 * stages; ++i) {
        pipeline.step();
        EXPECT_GE(pipeline.in_flight(), std::min(stages, sequences));
        if (sequences < stages) continue;
        const Spread rows = spread(pipeline.round(), rows_of);
        EXPECT_LE(rows.most, rows.least + 1);
      }
    }
  }
}

// Sequences end at different times: those that are left are dealt out anew at once.
TEST_P(SchedulerBalance, WhatEndsLeavesNoStageIdle) {
  std::mt19937 random(1);
  int quiet_steps = 0;
  for (int round = 0; round < 40; ++round) {
    const int32_t stages = 2 + round % 3;
    Pipeline pipeline(stages, GetParam());
    for (int i = 0; i < 40; ++i) {
      pipeline.add(1 + static_cast<int32_t>(random() % 30), 5 + static_cast<int32_t>(random() % 90));
    }
    for (int32_t i = 0; i < 3 * stages; ++i) pipeline.step();
    int since_end = 0, quiet = 0;
    for (int32_t running = pipeline.running(); running > stages; running = pipeline.running()) {
      pipeline.step();
      since_end = pipeline.running() < running ? 0 : since_end + 1;
      // Rows that are in flight together cannot be dealt out before they are back.
      if (since_end <= stages + 1) continue;
      EXPECT_GE(pipeline.in_flight(), stages);
      if (since_end <= 2 * stages + 1) continue;
      const Spread rows = spread(pipeline.round(), rows_of);
      EXPECT_LE(rows.most, rows.least + 1);
      ++quiet;
    }
    quiet_steps += quiet;
  }
  EXPECT_GT(quiet_steps, 100);
}

// One long prompt is in every stage at once, in equal chunks, up to its tail.
TEST_P(SchedulerBalance, ChunksOfOnePromptFillThePipeline) {
  for (const int32_t stages : {2, 3, 4}) {
    Pipeline pipeline(stages, GetParam());
    pipeline.add(4000, 4);
    std::multiset<size_t> sizes;
    for (int32_t left = 4000; left > 256 * (stages + 2);) {
      pipeline.step();
      EXPECT_GE(pipeline.in_flight(), stages);
      const Spread tokens = spread(pipeline.round(), tokens_of);
      EXPECT_EQ(tokens.most, tokens.least);
      left -= static_cast<int32_t>(tokens.most);
    }
  }
}

// Prompts beside decode rows: plans differ by little of what they compute.
TEST_P(SchedulerBalance, MixedPlansAreOfOneSize) {
  std::mt19937 random(3);
  for (const int32_t stages : {2, 3, 4}) {
    Pipeline pipeline(stages, GetParam());
    for (int i = 0; i < 48; ++i) pipeline.add(4 + i % 5, 400);
    for (int32_t i = 0; i < 4 * stages; ++i) pipeline.step();
    for (int i = 0; i < 8; ++i) pipeline.add(500 + static_cast<int32_t>(random() % 1000), 4);
    for (int32_t i = 0; i < 2 * stages; ++i) pipeline.step();
    for (int32_t i = 0; i < 3 * stages; ++i) {
      pipeline.step();
      EXPECT_GE(pipeline.in_flight(), stages);
      const Spread tokens = spread(pipeline.round(), tokens_of);
      EXPECT_LE(tokens.most - tokens.least, tokens.most / 10) << stages << " stages";
    }
  }
}

}  // namespace
}  // namespace trireme
