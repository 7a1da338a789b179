// Decides what each step computes. Pure host logic: no model, no MPI, no clock.
//
// next() plans one step: decode rows first, then prefill chunks under the token budget; it takes
// blocks from the pool (prefix hits first) and preempts by recomputation when they run out.
// apply() appends the sampled tokens of the oldest plan in flight and frees what has ended. Up to
// steps_in_flight plans may be out at once (one per pipeline stage). A sequence that waits for a
// sampled token is in one plan; consecutive chunks of one prompt may be in several.
//
// With look_ahead the row after one that samples is planned while that one is in flight, as many
// steps after it as there are stages: its token is kSampled. If the token then ends the sequence
// (only a stop id or an error is not foreseen), the row in flight is a ghost: its result is
// dropped, and slot and blocks stay taken until it is applied.
//
// Plans must be executed in the order of their steps on every rank, and within a plan a layer must
// write the KV of all rows before any row reads it (see README.md, "Scheduler and KV pool").
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/kv_cache_pool.h"
#include "runtime/sequence.h"
#include "runtime/step_plan.h"

namespace trireme {

struct SchedulerConfig {
  int32_t token_budget = 512;  // tokens of one step, all rows together
  int32_t max_chunk = 512;     // tokens of one prefill row
  int32_t max_rows = 256;      // sequences in one step
  int32_t max_running = 256;   // sequences with a slot
  int32_t max_queue = 1024;    // sequences waiting for their first slot
  int32_t max_context = 2048;  // prompt and generated tokens of one sequence
  int32_t steps_in_flight = 1;
  bool look_ahead = false;  // steps_in_flight is then one more than there are stages
  int32_t max_lookups = 0;  // cached blocks looked up for newcomers in one step; 0: lookup_budget()
};

// Throws kInvalidArgument naming the limit.
void validate(const SchedulerConfig& config);

// Slots that a scheduler of this configuration uses: ids are below this. It is max_running, or less
// where the rows of that many sequences would leave no budget for prefill: an eighth of the budget
// (at least 1 token, at most max_chunk) is kept for it.
int32_t slot_count(const SchedulerConfig& config);

// Plans in flight among which the work at hand is divided: one for each stage.
int32_t work_shares(const SchedulerConfig& config);

// max_lookups, or a number that keeps planning short beside the rows: 1,536 and 3 for each of
// max_rows.
int32_t lookup_budget(const SchedulerConfig& config);

// What happened to a sequence when a result was applied.
struct SequenceEvent {
  SequenceId id = 0;
  const RowResult* row = nullptr;  // the sampled token and log-probabilities; null if none
  bool first_admission = false;    // cached_tokens is meaningful from here on
  int32_t cached_tokens = 0;
  FinishReason finish = FinishReason::kNone;  // set: the sequence is gone after this event
};

struct SchedulerStats {
  int32_t waiting = 0;
  int32_t running = 0;
  int32_t in_flight = 0;  // plans
  uint64_t steps = 0;
  uint64_t preemptions = 0;
  uint64_t rows_ahead = 0;       // planned before their token was known
  uint64_t ghosts = 0;           // of these, those whose sequence had ended
  uint64_t lookups = 0;          // cached blocks looked up for newcomers
  uint64_t lookups_dropped = 0;  // newcomers whose search had to begin again
  KvPoolStats kv;
  int64_t kv_tokens_used = 0;       // token positions held by running sequences
  int64_t kv_tokens_allocated = 0;  // slots of the blocks they hold
};

class SchedulerState;

class Scheduler {
 public:
  // Throws kInvalidArgument naming the setting.
  Scheduler(const SchedulerConfig& config, const KvPoolConfig& pool);
  ~Scheduler();

  // Does the part of add() that grows with the prompt: its prefix hashes, and room for what will be
  // generated. Any thread may call it, whatever the others do. Equal prompts are hashed once.
  void prepare(std::span<Sequence> sequences) const;

  // Calls prepare() for a sequence without hashes. False if the queue is full. Throws
  // kInvalidArgument if the sequence can never run: prompt over max_context, or more blocks than
  // the pool owns; kAlreadyExists if its id lives. A sequence that brings generated tokens goes on
  // from there; if they already end it, its only event comes with the next take_events().
  bool add(Sequence sequence);

  // The sequence ends with kAborted: at once if it is not in flight (the event comes with the next
  // take_events()), else when its plan is applied. Unknown ids are ignored.
  void abort(SequenceId id);

  // Whether next() may have something to plan now; false where it is known to have nothing.
  bool can_plan() const;
  // Fills `plan` (cleared first); false if there is nothing to do until a result is applied or a
  // sequence is added.
  bool next(StepPlan& plan);

  // `result` belongs to the oldest plan in flight and has one entry for each of its rows that
  // samples or reports prompt log-probabilities, in row order (else throws kInternal, and nothing
  // has changed). A row that should sample and brings no token (-1) ends its sequence with kError.
  // Appends to `events`, whose row pointers live as long as `result`.
  void apply(const StepResult& result, std::vector<SequenceEvent>& events);

  // Events that happened outside apply(): sequences aborted while not in flight, or over before
  // they began.
  void take_events(std::vector<SequenceEvent>& events);

  bool idle() const;             // nothing waiting, running or in flight
  SchedulerStats stats() const;  // costs the same whatever is running

  // Forgets the world: every running sequence goes back to the queue and will be recomputed; the
  // prefix cache is emptied; the next plan carries a new epoch. Plans in flight are forgotten.
  void reset_world();

  // For tests: throws kInternal unless every block is accounted for. Costs O(blocks + tables).
  void check_invariants() const;

 private:
  std::unique_ptr<SchedulerState> state_;
};

}  // namespace trireme
