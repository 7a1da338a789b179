// The step loop on rank 0: takes sequences, plans, executes, hands out tokens. It never waits for
// the network or for a reader: events go to a sink that only queues them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/scheduler.h"
#include "runtime/sequence.h"
#include "runtime/step_plan.h"

namespace trireme {

class Worker;
struct World;

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
};

// A consistent snapshot, refreshed once per step.
struct EngineStats {
  SchedulerStats scheduler;
  uint64_t generated_tokens = 0;
  uint64_t prompt_tokens = 0;  // computed, cached ones not counted
};

class Engine {
 public:
  // Called on the engine's thread, once per step at most; must not block.
  using Sink = std::function<void(std::vector<EngineEvent>&& events)>;

  // `world` and `worker` must outlive the engine.
  Engine(World& world, Worker& worker, const SchedulerConfig& config, const KvPoolConfig& pool);
  ~Engine();

  void set_sink(Sink sink);

  // Any thread. submit() is false when the queue is full (all sequences or none); throws
  // kInvalidArgument if one can never run, kUnavailable once the engine is stopping.
  bool submit(std::vector<Sequence> sequences);
  void abort(SequenceId id);
  EngineStats stats() const;

  // Runs until stop(); the calling thread is the only one that talks to other ranks. Sleeps while
  // there is no work. On return every other rank has been told to end and every sequence has had
  // its last event. An error that ends the world is thrown after all sequences got kError.
  void run();
  // Any thread, also a signal-driven one: ends run() after the step at hand.
  void stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace trireme
