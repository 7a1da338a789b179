// Scheduler::apply(): what the oldest plan in flight brought.
#include <algorithm>

#include "base/error.h"
#include "runtime/scheduler_state.h"

namespace trireme {
namespace {

// Checks everything before anything changes.
void check_result(const Flight& flight, const StepResult& result) {
  if (result.step != flight.step) {
    fail(ErrorCode::kInternal, "step result: step {}, the oldest in flight is {}", result.step,
         flight.step);
  }
  size_t at = 0;
  for (const FlightRow& row : flight.rows) {
    if (!row.has_result()) continue;
    if (at >= result.rows.size() || result.rows[at].slot != row.slot) {
      fail(ErrorCode::kInternal, "step result: step {}: row {} is not that of slot {}", result.step,
           at, row.slot);
    }
    ++at;
  }
  if (at != result.rows.size()) {
    fail(ErrorCode::kInternal, "step result: step {}: {} rows, {} expected", result.step,
         result.rows.size(), at);
  }
}

// Brings an entry up to date with its row; the event says what the outside should know.
SequenceEvent settle(Entry& entry, const FlightRow& row, const RowResult* result) {
  SequenceEvent event{.id = entry.id};
  if (entry.aborted) {
    if (entry.in_flight == 0) event.finish = FinishReason::kAborted;
    return event;
  }
  event.row = result;
  event.cached_tokens = entry.cached;
  event.first_admission = !entry.announced;
  entry.announced = true;
  if (row.prompt_logprobs) entry.reported_to = row.end;
  if (row.sample && result->token < 0) {
    event.finish = FinishReason::kError;
    return event;
  }
  if (row.sample) entry.append(result->token);
  if (row.sample || row.last) event.finish = entry.finish();
  return event;
}

// The token that a row in flight was planned without is known now: so is the block that it fills.
void publish_ahead(SchedulerState& state, Entry& entry) {
  if (entry.computed != entry.size || entry.computed % state.pool.block_size() != 0) return;
  state.publish_filled(entry, entry.size - 1);
}

// Without this, waiting for entries is most of the time that a step of thousands of rows takes.
void prefetch(const std::vector<FlightRow>& rows, size_t at) {
  if (at + 8 >= rows.size()) return;
  const Entry* entry = rows[at + 8].entry;
  __builtin_prefetch(entry);
  __builtin_prefetch(&entry->tail);
}

}  // namespace

void Scheduler::apply(const StepResult& result, std::vector<SequenceEvent>& events) {
  SchedulerState& state = *state_;
  if (state.flights.empty()) {
    fail(ErrorCode::kInternal, "step result: step {}, but none is in flight", result.step);
  }
  check_result(state.flights.front(), result);
  Flight flight = std::move(state.flights.front());
  state.flights.pop_front();
  bool ended = false;
  const bool publishes = state.config.look_ahead && state.pool.config().prefix_cache;
  size_t at = 0;
  for (size_t i = 0; i < flight.rows.size(); ++i) {
    prefetch(flight.rows, i);
    const FlightRow& row = flight.rows[i];
    const RowResult* row_result = row.has_result() ? &result.rows[at++] : nullptr;
    Entry& entry = *row.entry;
    --entry.in_flight;
    if (entry.over) {
      ++state.ghosts;
      state.free_room(entry);
      ended = true;
      continue;
    }
    const SequenceEvent event = settle(entry, row, row_result);
    if (event.finish != FinishReason::kNone) {
      state.retire(entry);
      ended = true;
    } else if (publishes && row.sample && event.row != nullptr) {
      publish_ahead(state, entry);
    }
    const bool tells = event.finish != FinishReason::kNone || event.row != nullptr;
    if (tells || event.first_admission) events.push_back(event);
  }
  if (ended) state.compact();
  state.release_ended();
  flight.rows.clear();
  state.spare_rows.push_back(std::move(flight.rows));
  state.stalled = false;
}

}  // namespace trireme
