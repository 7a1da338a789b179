#include "runtime/engine.h"

#include <algorithm>
#include <exception>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "base/spans.h"
#include "parallel/world.h"
#include "runtime/trace/request_log.h"
#include "runtime/worker.h"
#include "runtime/worker_messages.h"

namespace trireme {
namespace {

// What stats() returns is copied under a lock of its own, so that a reader never waits for
// planning.
struct Counters {
  uint64_t generated_tokens = 0;
  uint64_t prompt_tokens = 0;
};

EngineEvent last_event(SequenceId id, FinishReason reason) {
  EngineEvent event;
  event.id = id;
  event.finish = reason;
  return event;
}

}  // namespace

// `mutex` guards the scheduler and what submitters touch. The engine's thread holds it while it
// plans and applies (microseconds), never while it computes, waits or calls the sink.
struct Engine::State {
  State(World& of_world, Worker& of_worker, const SchedulerConfig& config, const KvPoolConfig& pool,
        const EngineRecord& of_run)
      : world(of_world),
        worker(of_worker),
        record(of_run),
        scheduler(config, pool),
        max_queue(static_cast<size_t>(config.max_queue)),
        remote_results(of_world.layout.pipeline() > 1),
        look_ahead(config.look_ahead),
        last_plan(plan_seed(world.layout.describe())),
        slot_prompts(static_cast<size_t>(slot_count(config)), 0) {
    snapshot.scheduler = scheduler.stats();
  }

  void loop();
  bool plan_next();
  void dispatch();
  bool take_result(Wait wait);
  void apply(StepResult& finished);
  void collect_loose_events();
  void take_back(const std::vector<SequenceId>& ids);
  bool wait_for_work();
  void wake_ranks();
  void finish_sequences();
  void end_ranks();
  void fail_sequences();
  void append_event(const SequenceEvent& from, StepResult& finished);
  void mark_failed_rows(StepResult& finished);
  void hand_out();
  void refresh_stats();

  World& world;
  Worker& worker;
  const EngineRecord record;
  std::mutex mutex;
  std::condition_variable changed;
  Scheduler scheduler;
  std::unordered_set<SequenceId> live;      // submitted, last event not seen yet
  std::vector<SequenceEvent> loose_events;  // taken from the scheduler outside apply()
  bool stopping = false;

  const size_t max_queue;

  // The engine thread's own.
  const bool remote_results;  // the last stage is on other ranks
  const bool look_ahead;
  uint64_t last_plan;        // its hash: what the next one's begins with
  bool ranks_asleep = true;  // Worker::run() begins at the doorbell
  int in_flight = 0;
  uint64_t step = 0;
  StepPlan plan;
  StepResult result;
  std::vector<std::byte> message;
  std::vector<SequenceEvent> scheduler_events;
  std::vector<const RowResult*> failed_rows;  // of the result at hand: nothing was left to sample
  std::vector<EngineEvent> events;
  std::vector<int32_t> slot_prompts;  // prompt lengths, to tell prompt from generated tokens
  Counters counters;

  std::mutex sink_mutex;
  Sink sink;
  mutable std::mutex stats_mutex;
  EngineStats snapshot;
};

bool Engine::State::plan_next() {
  const SpanScope span(record.spans, SpanKind::kPlan);
  const std::lock_guard lock(mutex);
  return !stopping && scheduler.can_plan() && scheduler.next(plan);
}

void Engine::State::wake_ranks() {
  if (!ranks_asleep) return;
  world.doorbell->ring();
  ranks_asleep = false;
}

// Sends the plan and computes rank 0's share. With one stage the step ends here, unless the next
// one may be launched before its tokens are known.
void Engine::State::dispatch() {
  step = plan.step;
  if (record.requests != nullptr) record.requests->planned(plan);
  for (const SlotInit& init : plan.admitted) {
    slot_prompts.at(static_cast<size_t>(init.slot)) = init.prompt_tokens;
  }
  for (const PlanRow& row : plan.rows) {
    const int32_t prompt = slot_prompts.at(static_cast<size_t>(row.slot));
    counters.prompt_tokens +=
        static_cast<uint64_t>(std::clamp(prompt - row.position, 0, row.count));
  }
  if (world.control->size() > 1) {
    const SpanScope span(record.spans, SpanKind::kPlan);
    wake_ranks();
    encode(plan, message);
    last_plan = seal_plan(message, last_plan);
    world.ledger->begin_step(step, last_plan);
    world.tp->set_agreement(last_plan);
    send_order(*world.control, message, Order::kPlan);
  }
  ++in_flight;
  worker.launch(plan);
  if (!remote_results && !look_ahead) take_result(Wait::kDeadline);
  if (record.spans != nullptr) record.spans->leave();
}

// True if a step ended.
bool Engine::State::take_result(Wait wait) {
  if (remote_results) {
    const int from = world.layout.stages.back().first_rank;
    if (!receive(*world.control, from, kResultTag, wait, message)) return false;
    decode(std::span<const std::byte>(message), result);
  } else {
    worker.finish(result);
  }
  apply(result);
  return true;
}

// The scheduler wants a token for every row that samples: it gets one that nobody will see.
void Engine::State::mark_failed_rows(StepResult& finished) {
  failed_rows.clear();
  for (RowResult& row : finished.rows) {
    if (row.token != kNothingLeft) continue;
    row.token = kStandIn;
    failed_rows.push_back(&row);
  }
}

void Engine::State::append_event(const SequenceEvent& from, StepResult& finished) {
  if (!live.contains(from.id)) return;  // taken back
  EngineEvent event;
  event.id = from.id;
  event.finish = from.finish;
  if (from.first_admission) event.cached_tokens = from.cached_tokens;
  bool failed = false;
  if (from.row != nullptr) {
    // The rows are ours and each belongs to one sequence: their lists are moved out.
    RowResult& row = finished.rows[static_cast<size_t>(from.row - finished.rows.data())];
    failed = std::find(failed_rows.begin(), failed_rows.end(), &row) != failed_rows.end();
    event.token = failed ? -1 : row.token;
    event.logprob = row.logprob;
    event.top = std::move(row.top);
    event.prompt = std::move(row.prompt);
    event.prompt_top = std::move(row.prompt_top);
    if (event.token >= 0) ++counters.generated_tokens;
  }
  if (failed) {
    event.finish = FinishReason::kError;
    take_back({from.id});  // whatever the scheduler made of the token
  }
  if (event.finish != FinishReason::kNone) live.erase(from.id);
  events.push_back(std::move(event));
}

void Engine::State::apply(StepResult& finished) {
  const SpanScope span(record.spans, SpanKind::kResult);
  world.ledger->end_step(finished.step);
  {
    const std::lock_guard lock(mutex);
    scheduler_events.clear();
    mark_failed_rows(finished);
    scheduler.apply(finished, scheduler_events);
    --in_flight;
    if (record.requests != nullptr) record.requests->applied(finished.step, scheduler_events);
    for (const SequenceEvent& event : scheduler_events) append_event(event, finished);
  }
  hand_out();
}

void Engine::State::collect_loose_events() {
  {
    const std::lock_guard lock(mutex);
    scheduler.take_events(loose_events);
    if (loose_events.empty()) return;
    for (const SequenceEvent& event : loose_events) append_event(event, result);
    loose_events.clear();
  }
  hand_out();
}

// Undoes the submission of `ids`, as if they had never been added.
void Engine::State::take_back(const std::vector<SequenceId>& ids) {
  for (const SequenceId id : ids) {
    scheduler.abort(id);
    live.erase(id);
  }
  scheduler.take_events(loose_events);
  std::erase_if(loose_events, [&ids](const SequenceEvent& event) {
    return std::find(ids.begin(), ids.end(), event.id) != ids.end();
  });
}

void Engine::State::hand_out() {
  refresh_stats();
  if (events.empty()) return;
  std::vector<EngineEvent> batch;
  batch.swap(events);
  const auto now = std::chrono::steady_clock::now();
  for (EngineEvent& event : batch) event.time = now;
  const std::lock_guard lock(sink_mutex);
  if (sink) sink(std::move(batch));
}

void Engine::State::refresh_stats() {
  EngineStats fresh;
  {
    const std::lock_guard lock(mutex);
    fresh.scheduler = scheduler.stats();
  }
  fresh.generated_tokens = counters.generated_tokens;
  fresh.prompt_tokens = counters.prompt_tokens;
  const std::lock_guard lock(stats_mutex);
  snapshot = fresh;
}

// Nothing is in flight and nothing can be planned: sleeps until that changes. False: stopping.
bool Engine::State::wait_for_work() {
  std::unique_lock lock(mutex);
  if (stopping) return false;
  if (!live.empty() && !scheduler.idle() && !scheduler.can_plan()) {
    fail(ErrorCode::kInternal, "engine: {} sequences live, but nothing can be planned",
         live.size());
  }
  if (!live.empty()) return true;
  if (!ranks_asleep && world.control->size() > 1) {
    lock.unlock();
    worker.settle();
    message.clear();
    send_order(*world.control, message, Order::kSleep);
    ranks_asleep = true;
    lock.lock();
  }
  changed.wait(lock, [this] { return stopping || !live.empty(); });
  return !stopping;
}

void Engine::State::loop() {
  while (true) {
    collect_loose_events();
    while (remote_results && in_flight > 0 && take_result(Wait::kNever)) {
    }
    if (plan_next()) {
      dispatch();
      continue;
    }
    if (in_flight > 0) {
      take_result(Wait::kDeadline);
      continue;
    }
    if (!wait_for_work()) return;
  }
}

// After stop(): the steps in flight end, then every sequence does.
void Engine::State::finish_sequences() {
  std::vector<SequenceId> ids;
  {
    const std::lock_guard lock(mutex);
    ids.assign(live.begin(), live.end());
    for (const SequenceId id : ids) scheduler.abort(id);
  }
  while (in_flight > 0) take_result(Wait::kDeadline);
  collect_loose_events();
  if (!live.empty()) {
    fail(ErrorCode::kInternal, "engine: {} aborted sequences did not end", live.size());
  }
}

void Engine::State::end_ranks() {
  if (world.control->size() == 1) return;
  worker.settle();
  wake_ranks();
  message.clear();
  send_order(*world.control, message, Order::kEnd);
}

// The world is going down: every sequence still gets its last event.
void Engine::State::fail_sequences() {
  {
    const std::lock_guard lock(mutex);
    stopping = true;
    for (const SequenceId id : live) events.push_back(last_event(id, FinishReason::kError));
    live.clear();
  }
  std::vector<EngineEvent> batch;
  batch.swap(events);
  const std::lock_guard lock(sink_mutex);
  if (sink && !batch.empty()) sink(std::move(batch));
}

Engine::Engine(World& world, Worker& worker, const SchedulerConfig& config,
               const KvPoolConfig& pool, const EngineRecord& record)
    : state_(std::make_unique<State>(world, worker, config, pool, record)) {}

Engine::~Engine() = default;

void Engine::set_sink(Sink sink) {
  const std::lock_guard lock(state_->sink_mutex);
  state_->sink = std::move(sink);
}

bool Engine::submit(std::vector<Sequence> sequences) {
  State& state = *state_;
  if (sequences.size() > state.max_queue) {
    fail(ErrorCode::kInvalidArgument, "n is {}: at most {} sequences can wait (max_queue)",
         sequences.size(), state.max_queue);
  }
  state.scheduler.prepare(sequences);  // before the lock, which holds up the step loop
  const std::lock_guard lock(state.mutex);
  if (state.stopping) fail(ErrorCode::kUnavailable, "the engine is stopping");
  std::vector<SequenceId> added;
  try {
    for (Sequence& sequence : sequences) {
      const SequenceId id = sequence.id;
      if (!state.scheduler.add(std::move(sequence))) {
        state.take_back(added);
        return false;
      }
      added.push_back(id);
      state.live.insert(id);
      if (state.record.requests != nullptr) state.record.requests->submitted(id);
    }
  } catch (...) {
    state.take_back(added);
    throw;
  }
  state.changed.notify_one();
  return true;
}

void Engine::abort(SequenceId id) {
  const std::lock_guard lock(state_->mutex);
  state_->scheduler.abort(id);
  state_->changed.notify_one();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(state_->stats_mutex);
  return state_->snapshot;
}

void Engine::run() {
  State& state = *state_;
  if (state.record.spans != nullptr) state.record.spans->leave();
  try {
    state.loop();
    state.finish_sequences();
    state.end_ranks();
  } catch (const std::exception& error) {
    state.fail_sequences();
    abort_world(state.world, state.step, error);
    throw;
  }
}

void Engine::stop() {
  const std::lock_guard lock(state_->mutex);
  state_->stopping = true;
  state_->changed.notify_one();
}

}  // namespace trireme
