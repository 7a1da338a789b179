// Who of those that wait is let in, and what makes room for them.
#include <algorithm>

#include "runtime/scheduler_planner.h"

namespace trireme {
namespace {

// Of what the sequences admitted in one step bring along (token lists, histories, tables): more
// would make a message that holds up every rank. The first one always gets in.
constexpr int64_t kMaxAdmittedBytes = 16 << 20;

// What it costs to let one in, whatever its length, in look-ups.
constexpr int64_t kNewcomer = 32;

}  // namespace

// A waiting sequence may take slot and blocks of running ones of strictly lower priority. This
// comes before the pass, which would put those in flight.
void Planner::make_room_for_priority() {
  if (state_.waiting.empty() || state_.running.empty()) return;
  Entry& head = **state_.waiting.begin();
  const auto outranked = [&](const Entry* other) {
    return other->sequence.priority < head.sequence.priority;
  };
  if (!outranked(state_.running.back())) return;
  const size_t first = std::partition_point(state_.running.begin(), state_.running.end(),
                                            [&](const Entry* other) { return !outranked(other); }) -
                       state_.running.begin();
  if (!look_up(head, false)) return;
  bool more = true;
  while (more && state_.running_count >= state_.slots) more = preempt_from(first);
  while (more && !fits(head)) more = state_.release_ended(256) || preempt_from(first);
  if (!more) ahead_end_ = first;
  if (!preempted_) return;
  state_.compact();
  victim_end_ = state_.running.size();
  preempted_ = false;
}

// Newcomers enter in rank order. The first one that does not fit keeps the others out, so that a
// long prompt is not overtaken for ever by short ones. How many cached blocks one step looks up is
// limited: a long look-up goes on in the next one.
void Planner::admit_waiting() {
  while (!state_.waiting.empty() && state_.running_count < state_.slots) {
    if (prefill_tokens_left_ <= 0 || prefill_rows_left_ <= 0) return;
    Entry& head = **state_.waiting.begin();
    const bool nothing_else = plan_.rows.empty() && prefill_rows_.empty();
    if (nothing_else) state_.release_ended(INT64_MAX);
    if (!nothing_else && lookups_left_ <= 0) return;
    if (!may_fit(head)) return;
    const int64_t bytes = init_bytes(head);
    if (admitted_bytes_ > 0 && admitted_bytes_ + bytes > kMaxAdmittedBytes) return;
    if (!look_up(head, nothing_else)) return;
    if (!fits(head)) return;
    admit(head);
    admitted_bytes_ += bytes;
    lookups_left_ -= kNewcomer;
    promise(head);
  }
}

// An upper bound of its SlotInit.
int64_t Planner::init_bytes(const Entry& entry) const {
  const SamplingParams& sampling = entry.sequence.sampling;
  const auto tables = static_cast<int64_t>(pool_.groups()) * pool_.blocks_for(entry.size);
  const int64_t history = sampling.needs_counts() ? entry.size : 0;
  constexpr int64_t kFixed = 128;
  return kFixed + sampling.list_bytes() + (tables + history) * int64_t{sizeof(int32_t)};
}

// Goes on with the look-up of the first in the queue; false if this step's share of look-ups is
// used up before it is complete. It is made `whole` where there is nothing else to compute.
bool Planner::look_up(Entry& entry, bool whole) {
  const std::vector<int32_t>& tokens = entry.tokens();
  if (state_.looking != &entry) {
    state_.drop_lookup();
    state_.looking = &entry;
    state_.lookup.tables.resize(pool_.groups());
    const int32_t blocks = pool_.blocks_for(most_soon(entry.sequence, state_.config.max_context));
    for (std::vector<int32_t>& table : state_.lookup.tables) table.reserve(blocks);
  }
  // At least one token is left to compute: its logits choose the next one.
  const int32_t limit = state_.may_hit(entry) ? (entry.size - 1) / pool_.block_size() : 0;
  std::vector<int32_t>& retry_at = entry.retry_at;
  for (size_t g = 0; g < retry_at.size(); ++g) retry_at[g] -= pool_.group(g).available();
  const int64_t most = whole || entry.hurried ? INT64_MAX : std::max<int64_t>(0, lookups_left_);
  int64_t left = most;
  const bool complete = pool_.look_up(state_.lookup, entry.chain, tokens, limit, left);
  lookups_left_ -= most - left;
  state_.lookups += most - left;
  for (size_t g = 0; g < retry_at.size(); ++g) retry_at[g] += pool_.group(g).available();
  return complete;
}

// Blocks that a newcomer must leave: those promised to admitted prefills, and one for each running
// sequence (but no more than 1/32 of the pool), which will need it soon. Otherwise the newcomer
// would be preempted before its prefill pays.
int32_t Planner::kept_for_running(size_t group) const {
  if (state_.running_count == 0) return 0;
  return promised_[group] + std::min(state_.running_count, pool_.group(group).size() / 32);
}

// A sequence that did not fit is not looked up again (its whole prompt) before it may.
bool Planner::may_fit(const Entry& entry) const {
  if (state_.running_count == 0) return true;
  for (size_t g = 0; g < entry.retry_at.size(); ++g) {
    if (pool_.group(g).available() < entry.retry_at[g] + kept_for_running(g)) return false;
  }
  return true;
}

// Whether there are blocks for all known tokens of a newcomer. Alone it always fits: add() checked.
// Its look-up is complete, and no block was taken since.
bool Planner::fits(Entry& entry) {
  const int32_t found = state_.lookup.candidate;
  entry.retry_at.resize(pool_.groups());
  for (size_t g = 0; g < pool_.groups(); ++g) {
    const int32_t first = std::min(found, pool_.first_needed(g, found * pool_.block_size()));
    entry.retry_at[g] =
        pool_.unclaimed(state_.lookup, g) + pool_.blocks_to_take(g, entry.size, found, first);
  }
  return may_fit(entry);
}

// Gives it a slot and the blocks that its look-up found.
void Planner::admit(Entry& entry) {
  state_.dequeue(entry);
  pool_.claim(state_.lookup);
  state_.looking = nullptr;
  const int32_t found = state_.lookup.candidate;
  entry.hurried = false;
  entry.retry_at.clear();
  entry.phase = Phase::kPrefill;
  entry.slot = state_.free_slots.back();
  state_.free_slots.pop_back();
  entry.computed = found * pool_.block_size();
  entry.capacity = entry.computed;
  entry.tables.resize(pool_.groups());
  for (size_t g = 0; g < pool_.groups(); ++g) {
    BlockTable& table = entry.tables[g];
    table.blocks = std::move(state_.lookup.tables[g]);
    table.live = std::min(found, pool_.first_needed(g, entry.computed));
    const int64_t held = int64_t{found - table.live} * pool_.block_size();
    state_.kv_tokens_used += held;
    state_.kv_tokens_allocated += held;
  }
  state_.lookup = {};
  if (!entry.admitted) {
    entry.admitted = true;
    entry.cached = entry.computed;
    --state_.queued;
    if (state_.may_hit(entry)) pool_.count_query(entry.size, entry.computed);
  }
  ++state_.running_count;
  auto& running = state_.running;
  running.insert(std::upper_bound(running.begin(), running.end(), &entry, RanksBefore{}), &entry);
  announce(entry);
  emit_chunk(entry, fit(entry, chunk(entry)));
}

// What the workers must know of a newcomer.
void Planner::announce(Entry& entry) {
  SlotInit& init = plan_.admitted.emplace_back();
  init.slot = entry.slot;
  init.output_index = entry.sequence.output_index;
  init.prompt_tokens = entry.sequence.prompt_tokens;
  init.sampling = entry.sequence.sampling;
  init.blocks.reserve(entry.tables.size());
  for (const BlockTable& table : entry.tables) init.blocks.push_back(table.blocks);
  if (init.sampling.needs_counts()) init.history = entry.tokens();
}

}  // namespace trireme
