// What the frontend needs of an engine: sequences in, events out. `Engine` is the real one; tests
// of everything above it use a scripted one.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/scheduler.h"
#include "runtime/sequence.h"
#include "runtime/step_plan.h"

namespace trireme {

// One thing that happened to one sequence. Token events of a sequence come in order; exactly one
// event has finish != kNone, and it is the sequence's last.
struct EngineEvent {
  SequenceId id = 0;
  int32_t token = -1;  // sampled; -1: none with this event
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;
  // Prompt log-probabilities computed in this step, for consecutive positions.
  std::vector<TokenLogprob> prompt;
  std::vector<std::vector<TokenLogprob>> prompt_top;
  int32_t cached_tokens = -1;  // >= 0 once, at first admission
  FinishReason finish = FinishReason::kNone;
  std::chrono::steady_clock::time_point time;  // when its step's result was known
};

// A consistent snapshot, refreshed once per step.
struct EngineStats {
  SchedulerStats scheduler;
  uint64_t generated_tokens = 0;
  uint64_t prompt_tokens = 0;  // computed, cached ones not counted
};

class EngineApi {
 public:
  // Called on the engine's thread, once per step at most; must not block.
  using Sink = std::function<void(std::vector<EngineEvent>&& events)>;

  virtual ~EngineApi() = default;

  // An empty sink drops the events. On return the previous sink is not running and never will.
  virtual void set_sink(Sink sink) = 0;

  // Any thread. submit() is false when the queue is full (all sequences or none); throws
  // kInvalidArgument if one can never run or the queue can never hold them all, kUnavailable once
  // the engine is stopping.
  virtual bool submit(std::vector<Sequence> sequences) = 0;
  // Any thread. The sequence ends with kAborted at the next step; unknown ids are ignored.
  virtual void abort(SequenceId id) = 0;
  virtual EngineStats stats() const = 0;
};

}  // namespace trireme
