#include <algorithm>
#include <utility>

#include "base/error.h"
#include "parallel/wait.h"
#include "runtime/worker_messages.h"
#include "runtime/worker_state.h"

namespace trireme {

void Worker::State::want_prompt(const StepPlan& plan, const PlanRow& row, size_t result) {
  const WorkerSlot& slot = slots[row.slot];
  for (int32_t i = 0; i < row.count; ++i) {
    const int32_t at = row.token_begin + i;
    const int32_t target =
        i + 1 < row.count ? plan.tokens[static_cast<size_t>(at) + 1] : row.next_token;
    if (target < 0 || row.position + i + 1 >= slot.prompt_tokens) continue;
    SampleRow score;
    score.target = target;
    score.top = std::max(0, slot.sampling.prompt_logprobs);
    wanted.push_back({at, result, score});
  }
}

void Worker::State::want_sample(const PlanRow& row, size_t result) {
  const WorkerSlot& slot = slots[row.slot];
  SampleRow sample;
  sample.params = &slot.sampling;
  sample.counts = &slot.counts;
  sample.output_index = slot.output_index;
  sample.position = row.position + row.count - slot.prompt_tokens;
  wanted.push_back({row.token_begin + row.count - 1, result, sample});
}

void Worker::State::want_logits(const StepPlan& plan, StepResult& result) {
  wanted.clear();
  logit_tokens.clear();
  result.step = plan.step;
  size_t used = 0;
  for (const PlanRow& row : plan.rows) {
    if (!row.sample && !row.prompt_logprobs) continue;
    if (result.rows.size() == used) result.rows.emplace_back();
    RowResult& out = result.rows[used];
    out.slot = row.slot;
    out.token = -1;
    out.logprob = 0.0f;
    out.top.clear();
    out.prompt.clear();
    out.prompt_top.clear();
    if (row.prompt_logprobs) want_prompt(plan, row, used);
    if (row.sample) want_sample(row, used);
    ++used;
  }
  result.rows.resize(used);
  for (const Wanted& one : wanted) logit_tokens.push_back(one.token_index);
}

void Worker::State::deliver(const Wanted& from, Sampled& drawn, StepResult& result) const {
  RowResult& out = result.rows[from.result];
  if (from.row.params == nullptr) {
    out.prompt.push_back({from.row.target, drawn.logprob});
    out.prompt_top.push_back(std::move(drawn.top));
    return;
  }
  out.token = drawn.token >= 0 ? drawn.token : kNothingLeft;
  out.logprob = drawn.logprob;
  out.top = std::move(drawn.top);
}

bool Worker::State::is_done(const LaunchedStep& launch) const {
  return launch.number == 0 || sampler->done(launch.number);
}

// For loops that wait for the device or for others: throws, every 100 us, what went wrong.
void Worker::State::look_after(std::chrono::steady_clock::time_point& looked) {
  const auto now = std::chrono::steady_clock::now();
  if (now - looked < std::chrono::microseconds(100)) return;
  looked = now;
  backend.check();
  if (DeviceCommunicator* device = device_group()) device->check();
  world.control->check();
}

// What the device counts itself is a sequence's newest token: those before it must be known here.
void Worker::State::count_for_penalties() {
  const auto penalized = [](const Wanted& one) {
    return one.row.params != nullptr && one.row.params->needs_counts();
  };
  if (std::none_of(wanted.begin(), wanted.end(), penalized)) return;
  for (size_t i = 0; i + 1 < launched.size(); ++i) collect(launched[i]);
}

// Where no row needs the host, the device chooses while the host goes on.
bool Worker::State::queue_sampling(LaunchedStep& launch) {
  if (wanted.size() > static_cast<size_t>(logit_rows(config, backend))) return false;
  sample_rows.clear();
  for (const Wanted& one : wanted) sample_rows.push_back(one.row);
  if (!sampler->can_queue(sample_rows)) return false;
  count_for_penalties();
  for (size_t i = 0; i < wanted.size(); ++i) {
    const SlotId slot = launch.result.rows[wanted[i].result].slot;
    const int32_t before = wanted[i].row.position + slots[slot].prompt_tokens - 1;
    if (slots[slot].pending == before) sample_rows[i].newest_slot = slot;
  }
  sample_slots.clear();
  launch.rows.clear();
  for (const Wanted& one : wanted) {
    const SlotId slot = launch.result.rows[one.result].slot;
    const int32_t position = one.row.position + slots[slot].prompt_tokens;
    sample_slots.push_back(slot);
    launch.rows.push_back({one.result, slots[slot].admission, position});
    slots.queued(slot, position);
  }
  StepTimer* timer = backend.step_timer();
  if (timer != nullptr) timer->stamp(DevicePart::kSample);
  launch.number = sampler->queue(decoder.logits(logit_tokens), sample_rows, sample_slots);
  if (timer != nullptr) timer->stamp(DevicePart::kNothing);
  return true;
}

// Samples, or has the device choose.
void Worker::State::take_tokens(const StepPlan& plan, LaunchedStep& launch) {
  const bool queued = queue_sampling(launch);
  launch.told = !omits_edges && tokens_back->on_device(plan);
  if (launch.told) {
    if (!queued) fail(ErrorCode::kInternal, "step {}: tokens are not on the device", plan.step);
    tokens_back->tell_chosen();
  }
  if (queued) return;
  for (LaunchedStep& earlier : launched) collect(earlier);  // penalties count their tokens
  sample(launch.result);
  if (config.look_ahead) remember(plan, launch.result);
}

// Takes what the device has chosen, once it is there.
void Worker::State::collect(LaunchedStep& launch) {
  if (launch.number == 0) return;
  auto looked = std::chrono::steady_clock::now();
  Waiter waiter(kStepLimit, false);
  LedgerCall wait;
  wait.op = LedgerOp::kDevice;
  world.ledger->begin(wait);
  while (!sampler->done(launch.number)) {
    if (!waiter.pause()) {
      fail(ErrorCode::kDeadlineExceeded, "step {}: the GPU has not finished in {} s",
           launch.result.step, kStepLimit.count());
    }
    look_after(looked);
  }
  world.ledger->end();
  sampler->take(launch.number, chosen);
  launch.number = 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    RowResult& row = launch.result.rows[launch.rows[i].result];
    row.token = chosen[i] >= 0 ? chosen[i] : kNothingLeft;
    // The slot of a sequence that has ended may have another by now: rank 0 knew the token earlier.
    if (slots[row.slot].admission != launch.rows[i].admission) continue;
    slots.sampled(row.slot, launch.rows[i].position, std::max(chosen[i], kStandIn));
  }
}

void Worker::State::sample(StepResult& result) {
  const SpanScope span(config.spans, SpanKind::kSample);
  const auto most = static_cast<size_t>(logit_rows(config, backend));
  for (size_t begin = 0; begin < wanted.size(); begin += most) {
    const size_t count = std::min(most, wanted.size() - begin);
    const auto part = std::span(wanted).subspan(begin, count);
    sample_rows.clear();
    for (const Wanted& one : part) sample_rows.push_back(one.row);
    const MatrixView logits = decoder.logits(std::span(logit_tokens).subspan(begin, count));
    if (DeviceCommunicator* device = device_group()) device->wait({backend.stream()});
    sampler->sample(logits, sample_rows, sampled);
    for (size_t i = 0; i < count; ++i) deliver(part[i], sampled[i], result);
  }
}

// The next plan may name what was sampled before rank 0 has told it.
void Worker::State::remember(const StepPlan& plan, const StepResult& result) {
  size_t at = 0;
  for (const PlanRow& row : plan.rows) {
    if (!row.sample && !row.prompt_logprobs) continue;
    const int32_t token = result.rows[at++].token;
    if (!row.sample) continue;
    slots.sampled(row.slot, row.position + row.count, token == kNothingLeft ? kStandIn : token);
  }
}

void Worker::State::finish(StepResult& result) {
  if (launched.empty()) fail(ErrorCode::kInternal, "worker: no step is launched");
  collect(launched.front());
  std::swap(result, launched.front().result);
  spare.push_back(std::move(launched.front()));
  launched.pop_front();
}

}  // namespace trireme
