// One call of Scheduler::next(): a pass over the running sequences (scheduler_plan.cc), then
// admissions (scheduler_admit.cc). Private to scheduler*.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/scheduler_state.h"

namespace trireme {

class Planner {
 public:
  Planner(SchedulerState& state, StepPlan& plan, Flight& flight)
      : state_(state),
        pool_(state.pool),
        plan_(plan),
        flight_(flight),
        shares_(work_shares(state.config)),
        promised_(pool_.groups()) {}

  void run();

 private:
  void make_room_for_priority();
  void survey();
  int32_t decode_share(int32_t decoding, int32_t ready) const;
  void plan_running();
  void prefetch(size_t index) const;
  void plan_running(size_t index);
  bool may_go_ahead(const Entry& entry) const {
    return state_.config.look_ahead && entry.may_go_ahead(state_.steps + 1, shares_);
  }
  void plan_ahead(Entry& entry, size_t index);
  void admit_waiting();

  bool look_up(Entry& entry, bool whole);
  bool fits(Entry& entry);
  bool may_fit(const Entry& entry) const;
  int64_t init_bytes(const Entry& entry) const;
  int32_t kept_for_running(size_t group) const;
  void promise(const Entry& entry);
  void admit(Entry& entry);
  void announce(Entry& entry);

  int32_t chunk(const Entry& entry) const;
  int32_t fit(const Entry& entry, int32_t wanted) const;
  int32_t make_fit(const Entry& entry, int32_t wanted, size_t index);
  bool preempt_from(size_t first);
  void slide_windows(Entry& entry);
  void emit_decode(Entry& entry, int32_t token);
  void emit_chunk(Entry& entry, int32_t count);
  void place(Entry& entry, int32_t count, PlanRow& row, FlightRow& flight);
  void take_blocks(Entry& entry, PlanRow& row);

  SchedulerState& state_;
  KvCachePool& pool_;
  StepPlan& plan_;
  Flight& flight_;
  const int32_t shares_;
  std::vector<PlanRow> prefill_rows_;  // follow the decode rows
  std::vector<FlightRow> prefill_flight_;
  std::vector<int32_t> promised_;  // per KV group: blocks that admitted prefills have yet to take
  int64_t admitted_bytes_ = 0;
  int64_t lookups_left_ = 0;
  int32_t decode_left_ = 0;  // rows
  int32_t prefill_tokens_left_ = 0;
  int32_t prefill_rows_left_ = 0;
  size_t victim_end_ = 0;  // running[victim_end_…] cannot be preempted any more in this step
  size_t ahead_end_ = SIZE_MAX;  // running[ahead_end_…] are to be preempted: not planned ahead
  bool preempted_ = false;
  bool starved_ = false;  // a running sequence lacks blocks
};

}  // namespace trireme
