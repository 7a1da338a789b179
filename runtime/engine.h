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

#include "runtime/engine_api.h"
#include "runtime/scheduler.h"
#include "runtime/sequence.h"
#include "runtime/step_plan.h"

namespace trireme {

class RequestLog;
class SpanRecorder;
class Worker;
struct World;

// What is recorded for a trace; null: nothing.
struct EngineRecord {
  SpanRecorder* spans = nullptr;  // the worker's
  RequestLog* requests = nullptr;
};

class Engine final : public EngineApi {
 public:
  // `world`, `worker` and what `record` names must outlive the engine.
  Engine(World& world, Worker& worker, const SchedulerConfig& config, const KvPoolConfig& pool,
         const EngineRecord& record = {});
  ~Engine() override;

  void set_sink(Sink sink) override;

  bool submit(std::vector<Sequence> sequences) override;
  void abort(SequenceId id) override;
  EngineStats stats() const override;

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
