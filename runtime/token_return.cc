#include "runtime/token_return.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "runtime/worker_messages.h"

namespace trireme {

TokenReturn::TokenReturn(World& world, Backend& backend, WorkerSlots& slots,
                         const Settings& settings)
    : world_(world), backend_(backend), slots_(slots), shares_(settings.shares) {
  if (!settings.look_ahead || world.layout.pipeline() == 1) return;
  awaits_ = world.first_stage();
  tells_ = world.last_stage();
  agree(world.device_data ? settings.most_on_device : 0);
  if (most_on_device_ == 0 || !(awaits_ || tells_)) return;
  chosen_ = backend.chosen_tokens(settings.slots);
  stream_ = backend.make_side_stream();
  reached_ = backend.make_mark();
  arrived_ = backend.make_mark();
  // First-stage rank j hears from the last stage's rank j mod its size.
  const int first = world.layout.stages.front().tensor, last = world.layout.stages.back().tensor;
  if (awaits_) peers_ = {first + world.tensor_rank() % last};
  for (int rank = world.tensor_rank(); tells_ && rank < first; rank += last) {
    peers_.push_back(rank);
  }
}

// The last stage's word counts.
void TokenReturn::agree(size_t most_on_device) {
  uint64_t most = most_on_device;
  world_.control->broadcast(std::as_writable_bytes(std::span(&most, 1)),
                            world_.layout.stages.back().first_rank);
  most_on_device_ = static_cast<size_t>(most);
}

bool TokenReturn::on_device(const StepPlan& plan) const {
  size_t rows = 0;
  for (const PlanRow& row : plan.rows) {
    if (row.prompt_logprobs) return false;
    if (!row.sample) continue;
    if (slots_[row.slot].sampling.logprobs >= 0) return false;
    ++rows;
  }
  return rows > 0 && rows <= most_on_device_;
}

void TokenReturn::begin(uint64_t step) {
  if (!awaits_) return;
  waits_ = false;
  hear_what_came();
  while (!awaited_on_device_.empty() &&
         awaited_on_device_.front() + static_cast<uint64_t>(shares_) <= step) {
    receive_chosen();
  }
}

void TokenReturn::need(SlotId id, int32_t position) {
  const WorkerSlot& slot = slots_[id];
  if (!awaits_ || slot.pending != position) return;
  if (slot.pending_on_device) {
    if (!std::exchange(waits_, true)) arrived_->await(backend_.stream());
    return;
  }
  while (slot.pending == position) hear();
}

void TokenReturn::expect(const StepPlan& plan) {
  if (!awaits_) return;
  const bool device = on_device(plan);
  std::vector<Row> rows;
  for (const PlanRow& row : plan.rows) {
    if (!row.sample) continue;
    const int32_t position = row.position + row.count;
    slots_.queued(row.slot, position, device);
    rows.push_back({row.slot, position, slots_[row.slot].admission});
  }
  if (rows.empty()) return;
  if (device) {
    awaited_on_device_.push_back(plan.step);
  } else {
    awaited_.push_back(std::move(rows));
  }
}

void TokenReturn::settle() {
  while (!awaited_.empty()) hear();
  while (!awaited_on_device_.empty()) receive_chosen();
}

// Takes the tokens of the oldest step that is awaited over `data`. A slot may have been taken anew
// meanwhile.
void TokenReturn::hear() {
  if (awaited_.empty()) fail(ErrorCode::kInternal, "worker: no step's tokens are awaited");
  const std::vector<Row> rows = std::move(awaited_.front());
  awaited_.pop_front();
  std::vector<int32_t> tokens(rows.size());
  world_.data->recv(std::as_writable_bytes(std::span(tokens)),
                    world_.layout.stages.back().first_rank, kTokensTag);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (slots_[rows[i].slot].admission != rows[i].admission) continue;
    slots_.sampled(rows[i].slot, rows[i].position, tokens[i]);
  }
}

void TokenReturn::hear_what_came() {
  const int from = world_.layout.stages.back().first_rank;
  while (!awaited_.empty() && world_.data->probe(from, kTokensTag, Wait::kNever) >= 0) hear();
}

// All slots' newest tokens, of which the others are as good as before. Not before what is queued
// has run: the receiver would take room on the device, and the last step may still read there.
void TokenReturn::receive_chosen() {
  awaited_on_device_.pop_front();
  void* stream = stream_->native();
  reached_->set(backend_.stream());
  reached_->await(stream);
  world_.device_tokens->recv({chosen_.data(), chosen_.size()}, peers_[0], kTokensTag, {stream});
  arrived_->set(stream);
}

void TokenReturn::tell_chosen() {
  if (!tells_) return;
  void* stream = stream_->native();
  reached_->set(backend_.stream());
  reached_->await(stream);
  for (const int peer : peers_) {
    world_.device_tokens->send({chosen_.data(), chosen_.size()}, peer, kTokensTag, {stream});
  }
}

void TokenReturn::tell(const StepResult& result) {
  if (!tells_ || world_.tensor_rank() != 0) return;
  std::vector<int32_t> tokens;
  for (const RowResult& row : result.rows) {
    if (row.token != -1) tokens.push_back(std::max(row.token, kStandIn));
  }
  if (tokens.empty()) return;
  for (int rank = 0; rank < world_.layout.stages.front().tensor; ++rank) {
    world_.data->send(std::as_bytes(std::span(tokens)), rank, kTokensTag);
  }
}

}  // namespace trireme
