#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "parallel/wait.h"
#include "runtime/worker_messages.h"
#include "runtime/worker_state.h"

namespace trireme {
namespace {

std::string host_name() {
  char name[256] = "?";
  gethostname(name, sizeof(name) - 1);
  return name;
}

}  // namespace

// On a rank other than 0. Results go to rank 0.
void Worker::State::finish_oldest(StepResult& result, std::vector<std::byte>& message) {
  const SpanScope span(config.spans, SpanKind::kResult);
  const bool told = launched.front().told;
  finish(result);
  world.ledger->end_step(result.step);
  if (!told) tokens_back->tell(result);
  if (world.last_stage() && !world.first_stage() && world.tensor_rank() == 0) {
    encode(result, message);
    world.control->send(message, 0, kResultTag);
  }
}

// Results leave as soon as they are there, until there is an order: the next step is launched while
// the device is at this one.
void Worker::State::attend(StepResult& result, std::vector<std::byte>& message) {
  while (!launched.empty()) {
    if (!is_done(launched.front())) {
      LedgerCall wait;
      wait.op = LedgerOp::kDevice;
      world.ledger->begin(wait);
      const bool ordered = wait_for_device_or_order();
      world.ledger->end();
      if (ordered) return;
    }
    finish_oldest(result, message);
  }
}

// True if there is an order, and room for its step; else the oldest step is done.
bool Worker::State::wait_for_device_or_order() {
  const bool room = launched.size() < LogitChooser::kInFlight;
  Waiter waiter(kStepLimit, false);
  auto looked = std::chrono::steady_clock::now();
  while (!is_done(launched.front())) {
    if (room && world.control->probe(0, kOrderTag, Wait::kNever) >= 0) return true;
    if (!waiter.pause()) {
      fail(ErrorCode::kDeadlineExceeded, "step {}: the GPU has not finished in {} s",
           launched.front().result.step, kStepLimit.count());
    }
    look_after(looked);
  }
  return false;
}

// A plan that is not the one that rank 0 has sent, or that follows another, is refused before
// anything is done with it. That it is also the same as on the ranks beside, their first sum will
// tell.
void Worker::State::take_plan(std::vector<std::byte>& message, StepPlan& plan) {
  const SpanScope span(config.spans, SpanKind::kPrepare);
  const PlanHashes hashes = unseal_plan(message, last_plan);
  last_plan = hashes.own;
  if (hashes.own != hashes.sent) {
    world.ledger->begin_step(step + 1, hashes.own);
    fail(ErrorCode::kInternal, "the hash of the plan is {:016x}, that of rank 0's is {:016x}",
         hashes.own, hashes.sent);
  }
  decode(std::span<const std::byte>(message), plan);
  world.ledger->begin_step(plan.step, hashes.own);
  world.tp->set_agreement(hashes.own);
}

void Worker::run() {
  State& state = *state_;
  World& world = state.world;
  StepPlan plan;
  StepResult result;
  std::vector<std::byte> message;
  SpanRecorder* spans = state.config.spans;
  const auto sleep = [&] {
    const SpanScope span(spans, SpanKind::kWait);
    LedgerCall call;
    call.op = LedgerOp::kIdle;
    world.ledger->begin(call);
    world.doorbell->sleep();
    world.ledger->end();
  };
  try {
    if (spans != nullptr) spans->leave();
    sleep();
    while (true) {
      receive(*world.control, 0, kOrderTag, Wait::kForever, message);
      if (message.empty()) fail(ErrorCode::kInternal, "worker: empty message from rank 0");
      const auto order = static_cast<Order>(message.back());
      message.pop_back();
      if (order < Order::kPlan || order > Order::kEnd)
        fail(ErrorCode::kInternal, "worker: no such order from rank 0");
      const bool goes_on = order == Order::kPlan;
      if (goes_on) {
        state.take_plan(message, plan);
        launch(plan);
        if (!samples()) world.ledger->end_step(plan.step);
      }
      if (goes_on) {
        state.attend(result, message);
      } else {
        while (!state.launched.empty()) state.finish_oldest(result, message);
        settle();
      }
      if (goes_on && spans != nullptr) spans->leave();
      if (order == Order::kEnd) return;
      if (order == Order::kSleep) sleep();
    }
  } catch (const std::exception& error) {
    abort_world(world, state.step, error);
    throw;
  }
}

void abort_world(World& world, uint64_t step, const std::exception& error) {
  const std::string line = fmt::format("rank {} {} tp{} pp{} step {}: {}", world.rank, host_name(),
                                       world.tensor_rank(), world.stage(), step, error.what());
  if (world.watchdog != nullptr) {
    const auto* ours = dynamic_cast<const Error*>(&error);
    const bool passive = ours != nullptr && (ours->code() == ErrorCode::kAborted ||
                                             ours->code() == ErrorCode::kDeadlineExceeded);
    world.watchdog->failed(error.what(), passive);
  }
  if (world.watchdog == nullptr || !world.watchdog->has_ended()) log::error("{}", line);
  abort_communicators(world, line);
}

}  // namespace trireme
