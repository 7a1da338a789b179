// A scheduler with small limits, stepped by hand: its plans get results, its events are kept.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <vector>

#include "runtime/scheduler.h"

namespace trireme::test {

inline SchedulerConfig small_config() {
  SchedulerConfig config;
  config.token_budget = 16;
  config.max_chunk = 16;
  config.max_rows = 4;
  config.max_running = 4;
  config.max_queue = 8;
  config.max_context = 64;
  return config;
}

inline KvPoolConfig small_pool(int32_t blocks = 64) {
  KvPoolConfig pool;
  pool.block_size = 4;
  pool.blocks = {blocks};
  return pool;
}

// A prompt of consecutive token ids from `first` on.
inline Sequence sequence_of(SequenceId id, int32_t prompt, int32_t max_tokens, int32_t first = 0) {
  Sequence sequence;
  sequence.id = id;
  sequence.tokens.resize(prompt);
  std::iota(sequence.tokens.begin(), sequence.tokens.end(), first);
  sequence.prompt_tokens = prompt;
  sequence.sampling.max_tokens = max_tokens;
  sequence.sampling.seed = id;  // by which a test knows it again in a plan
  return sequence;
}

inline StepResult result_of(const StepPlan& plan, int32_t token = 7) {
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

}  // namespace trireme::test
