// Executes step plans on one rank: mirrors slots, runs this stage's layers, samples on the last.
//
// A step is launched, and finished when its tokens are wanted, so that the next one can be launched
// in between. Steps are executed in the order of their launches.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>

#include "base/spans.h"
#include "kernels/backend.h"
#include "parallel/stage_edge.h"
#include "parallel/world.h"
#include "runtime/model/decoder.h"
#include "runtime/model/kv_cache.h"
#include "runtime/step_plan.h"

namespace trireme {

struct WorkerConfig {
  int32_t slots = 256;       // slot ids are below this: slot_count() of the scheduler
  int32_t max_tokens = 512;  // as SchedulerConfig::token_budget
  int32_t block_size = 16;
  bool look_ahead = false;        // as SchedulerConfig::look_ahead
  int32_t shares = 1;             // as work_shares()
  SpanRecorder* spans = nullptr;  // of this rank's thread, for a trace; must outlive the worker
};

class Worker {
 public:
  // References must outlive the worker. Collective over the world (stage edges are built).
  Worker(const ModelConfig& model, World& world, Backend& backend, DecoderWeights weights,
         KvCache cache, const WorkerConfig& config);
  ~Worker();

  // This rank's share of one step: receives the previous stage's activations, computes, passes on,
  // samples. Takes part in every collective of the step, and keeps nothing of `plan`. Work on a
  // device may only be queued when it returns. A plan that does not fit the slots and sizes of this
  // worker throws kInternal before anything is computed.
  void launch(const StepPlan& plan);
  // Ranks of the last stage: waits for the tokens of the oldest step that is launched and not
  // finished. Needs no other rank.
  void finish(StepResult& result);

  // No step is in flight any more: takes in what ranks still have to tell of the last ones.
  void settle();

  // For measurements of a stage by itself, and for warm-up: activations are neither received nor
  // sent, nor are the tokens told, and the results of such steps mean nothing. The decoder has more
  // of that kind.
  void omit_edges(bool omit);
  Decoder& decoder();
  const StageEdge& edge() const;
  uint64_t last_step() const;  // that was launched

  // Before the first request, and with another cache than that of the constructor: what was
  // recorded with the old one must have been forgotten (Backend::forget_recorded).
  void replace_cache(KvCache cache);
  bool samples() const;  // this rank is of the last stage

  // Ranks other than 0: sleeps at the doorbell, receives plans and executes them, returns results
  // (tensor rank 0 of the last stage does), until rank 0 ends the world. An error is logged with
  // rank, host and step; every communicator is aborted, and it is thrown.
  void run();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The step loop has failed: tells the watchdog and waits for its word, or without one logs "rank R
// HOST tpT ppS step N: what"; then aborts every communicator of the world.
void abort_world(World& world, uint64_t step, const std::exception& error);

}  // namespace trireme
