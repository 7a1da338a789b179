// A rank's mirror of the running sequences, kept by the deltas that plans carry.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/layout.h"
#include "runtime/sampler_row.h"
#include "runtime/step_plan.h"

namespace trireme {

struct WorkerSlot {
  bool taken = false;
  uint64_t admission = 0;  // of all: tells a sequence from those that had the slot before
  uint32_t output_index = 0;
  int32_t prompt_tokens = 0;
  SamplingParams sampling;
  std::vector<std::vector<int32_t>> tables;  // per KV group
  TokenCounts counts;    // of this rank's vocabulary; only if sampling.needs_counts()
  int32_t counted = 0;   // positions that are in `counts`
  int32_t newest = -1;   // the token sampled last, once sampled() has told it
  int32_t pending = -1;  // position of the token that is chosen, but not known here; -1: none
  bool pending_on_device = false;  // of this rank, or on its way there
  int32_t next = -1;  // position of the token that the newest row samples; -1: it samples none
};

class WorkerSlots {
 public:
  // `vocab`: the tokens to count; none on ranks that do not sample.
  WorkerSlots(int32_t slots, size_t groups, int32_t block_size, Part vocab);

  // Takes a plan's admissions, new blocks and tokens. Throws kInternal if the plan does not fit.
  void apply(const StepPlan& plan);
  // The token that this rank sampled for a position, told before a plan may name it: a row whose
  // token is kSampled stands for it, and it counts from here on.
  void sampled(SlotId slot, int32_t position, int32_t token);
  // The token for a position is on the device or on another rank, and sampled() will tell it later,
  // unless the slot has another `admission` by then.
  void queued(SlotId slot, int32_t position, bool on_device = true);
  const WorkerSlot& operator[](SlotId slot) const { return slots_[static_cast<size_t>(slot)]; }

 private:
  void check(const StepPlan& plan) const;
  void admit(const SlotInit& init);
  void extend(const StepPlan& plan, const PlanRow& row);
  void count(WorkerSlot& slot, int32_t position, int32_t token);

  std::vector<WorkerSlot> slots_;
  size_t groups_;
  int32_t block_size_;
  Part vocab_;
  uint64_t epoch_ = 0;
  uint64_t admissions_ = 0;
};

}  // namespace trireme
