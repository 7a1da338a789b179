// Scheduler::next(): one pass over the running sequences in rank order, then admissions.
//
// Blocks are handed out strictly by rank: the first-ranked sequence that is not in flight may take
// the blocks of every other that is not in flight, so it always gets on. Tokens go to decode rows
// first: their number is known before the pass, and prefill gets what they leave.
#include <algorithm>

#include "runtime/scheduler_state.h"

namespace trireme {
namespace {

// With several steps in flight the prefill work at hand is spread over them, in shares no smaller
// than this: smaller chunks would read the weights more often than they save time.
constexpr int64_t kSmallestShare = 64;

// Of what the sequences admitted in one step bring along (token lists, histories, tables): more
// would make a message that holds up every rank. The first one always gets in.
constexpr int64_t kMaxAdmittedBytes = 16 << 20;

// What it costs to let one in, whatever its length, in look-ups.
constexpr int64_t kNewcomer = 32;

class Planner {
 public:
  Planner(SchedulerState& state, StepPlan& plan, Flight& flight)
      : state_(state), pool_(state.pool), plan_(plan), flight_(flight), promised_(pool_.groups()) {}

  void run();

 private:
  void make_room_for_priority();
  void survey();
  void plan_running();
  void prefetch(size_t index) const;
  void plan_running(size_t index);
  bool may_go_ahead(const Entry& entry) const;
  void plan_ahead(Entry& entry, size_t index);
  void admit_waiting();

  bool look_up(Entry& entry, bool whole);
  bool fits(Entry& entry);
  bool may_fit(const Entry& entry) const;
  int64_t init_bytes(const Entry& entry) const;
  int32_t kept_for_running(size_t group) const;
  void promise(const Entry& entry);
  void admit(Entry& entry);
  void announce(Entry& entry);

  int32_t chunk(const Entry& entry) const;
  int32_t fit(const Entry& entry, int32_t wanted) const;
  int32_t make_fit(const Entry& entry, int32_t wanted, size_t index);
  bool preempt_from(size_t first);
  void slide_windows(Entry& entry);
  void emit_decode(Entry& entry, int32_t token);
  void emit_chunk(Entry& entry, int32_t count);
  void place(Entry& entry, int32_t count, PlanRow& row, FlightRow& flight);
  void take_blocks(Entry& entry, PlanRow& row);

  SchedulerState& state_;
  KvCachePool& pool_;
  StepPlan& plan_;
  Flight& flight_;
  std::vector<PlanRow> prefill_rows_;  // follow the decode rows
  std::vector<FlightRow> prefill_flight_;
  std::vector<int32_t> promised_;  // per KV group: blocks that admitted prefills have yet to take
  int64_t admitted_bytes_ = 0;
  int64_t lookups_left_ = 0;
  int32_t decode_left_ = 0;  // rows
  int32_t prefill_tokens_left_ = 0;
  int32_t prefill_rows_left_ = 0;
  size_t victim_end_ = 0;  // running[victim_end_…] cannot be preempted any more in this step
  size_t ahead_end_ = SIZE_MAX;  // running[ahead_end_…] are to be preempted: not planned ahead
  bool preempted_ = false;
  bool starved_ = false;  // a running sequence lacks blocks
};

void Planner::run() {
  victim_end_ = state_.running.size();
  lookups_left_ = lookup_budget(state_.config);
  make_room_for_priority();
  survey();
  plan_running();
  if (plan_.rows.empty() && prefill_rows_.empty()) {
    // What was kept for decode rows that lack blocks goes to the prefills that rank before them.
    decode_left_ = 0;
    prefill_tokens_left_ = state_.config.token_budget;
    prefill_rows_left_ = state_.config.max_rows;
    plan_running();
  }
  if (preempted_) state_.compact();
  if (!preempted_ && !starved_) admit_waiting();
  plan_.rows.insert(plan_.rows.end(), prefill_rows_.begin(), prefill_rows_.end());
  flight_.rows.insert(flight_.rows.end(), prefill_flight_.begin(), prefill_flight_.end());
}

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

// Divides the rows and tokens of this step between decode and prefill.
void Planner::survey() {
  const SchedulerConfig& config = state_.config;
  int32_t decoding = 0;
  int32_t ready = 0;
  int32_t prefilling = 0;
  int64_t prefill = state_.waiting_tokens;
  for (size_t i = 0; i < state_.running.size(); ++i) {
    if (i + 12 < state_.running.size()) __builtin_prefetch(state_.running[i + 12]);
    const Entry* entry = state_.running[i];
    if (entry->phase == Phase::kDecode) {
      ++decoding;
      ready += entry->ready() || may_go_ahead(*entry);
    } else if (entry->ready()) {
      ++prefilling;
      prefill += entry->size - entry->computed;
    }
  }
  // Each plan in flight gets its share of the decode rows, so that every stage has work.
  const int32_t steps = work_shares(config);
  decode_left_ = std::min({ready, (decoding + steps - 1) / steps, config.max_rows});
  if (prefilling > 0 && config.max_rows > 1) {
    decode_left_ = std::min(decode_left_, config.max_rows - 1);  // prefill is never shut out
  }
  int64_t tokens = config.token_budget - decode_left_;
  if (steps > 1) {
    for (const Flight& flight : state_.flights) prefill += flight.prefill_tokens;
    tokens = std::min(tokens, std::max(kSmallestShare, (prefill + steps - 1) / steps));
  }
  prefill_tokens_left_ = static_cast<int32_t>(tokens);
  prefill_rows_left_ = config.max_rows - decode_left_;
}

void Planner::plan_running() {
  std::fill(promised_.begin(), promised_.end(), 0);
  for (size_t i = 0; i < state_.running.size(); ++i) {
    prefetch(i);
    plan_running(i);
  }
}

// A row that begins or fills a block touches more of its sequence than the others.
void Planner::prefetch(size_t index) const {
  const size_t far = index + 16;
  if (far < state_.running.size()) __builtin_prefetch(state_.running[far]);
  const size_t near = index + 8;
  if (near >= state_.running.size()) return;
  Entry& entry = *state_.running[near];
  if (entry.phase != Phase::kDecode || entry.computed + 1 < entry.capacity) return;
  __builtin_prefetch(&entry.tail, 1);
  __builtin_prefetch(&entry.sequence.tokens, 1);
  __builtin_prefetch(&entry.chain, 1);
  __builtin_prefetch(&entry.tables, 1);
}

void Planner::plan_running(size_t index) {
  Entry& entry = *state_.running[index];
  if (may_go_ahead(entry)) return plan_ahead(entry, index);
  if (!entry.running() || !entry.ready()) return;
  const bool decode = entry.phase == Phase::kDecode;
  if (decode && decode_left_ == 0) return;
  const int32_t wanted = decode ? 1 : chunk(entry);
  if (wanted > 0) {
    slide_windows(entry);
    const int32_t count = make_fit(entry, wanted, index);
    if (count == 0) {
      starved_ = true;
    } else if (decode) {
      emit_decode(entry, entry.newest);
    } else {
      emit_chunk(entry, count);
    }
  }
  promise(entry);
}

bool Planner::may_go_ahead(const Entry& entry) const {
  return state_.config.look_ahead && entry.may_go_ahead();
}

// Plans the token that the entry's row in flight will sample. Nobody is preempted for what may turn
// out a ghost. Where it lacks a block, nobody ranked after it goes ahead either: those are then not
// in flight when it comes with its token, and can be preempted.
void Planner::plan_ahead(Entry& entry, size_t index) {
  if (decode_left_ == 0 || starved_ || index >= ahead_end_) return;
  slide_windows(entry);
  int32_t count = fit(entry, 1);
  while (count == 0 && state_.release_ended(64)) count = fit(entry, 1);
  if (count == 0) {
    starved_ = true;
    return;
  }
  ++state_.rows_ahead;
  emit_decode(entry, kSampled);
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

void Planner::promise(const Entry& entry) {
  if (entry.phase != Phase::kPrefill) return;
  for (size_t g = 0; g < pool_.groups(); ++g) {
    const BlockTable& table = entry.tables[g];
    promised_[g] +=
        pool_.blocks_to_take(g, entry.size, static_cast<int32_t>(table.blocks.size()), table.live);
  }
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

// Tokens of the next prefill row. Where prompt log-probabilities are wanted, a row lies on one side
// of what was delivered before a preemption, and of the end of the prompt.
int32_t Planner::chunk(const Entry& entry) const {
  if (prefill_rows_left_ <= 0) return 0;
  int32_t end = entry.size;
  if (entry.wants_prompt_logprobs) {
    for (const int32_t cut : {entry.sequence.prompt_tokens, entry.reported_to}) {
      if (entry.computed < cut) end = std::min(end, cut);
    }
  }
  return std::min({end - entry.computed, state_.config.max_chunk, prefill_tokens_left_});
}

// How many of `wanted` more tokens have blocks or can get them without preemption.
int32_t Planner::fit(const Entry& entry, int32_t wanted) const {
  const int32_t room = entry.capacity - entry.computed;
  if (room >= wanted) return wanted;
  int32_t blocks = pool_.blocks_for(wanted - room);
  for (size_t g = 0; g < pool_.groups(); ++g) {
    blocks = std::min(blocks, pool_.group(g).available());
  }
  return std::min(wanted, room + blocks * pool_.block_size());
}

// The same for running[index], which may cost others their blocks: those that have ended, then a
// newcomer's look-up, then whoever ranks after it. 0: it waits and keeps what it has; those before
// it will preempt it if they must.
int32_t Planner::make_fit(const Entry& entry, int32_t wanted, size_t index) {
  int32_t count = fit(entry, wanted);
  while (count < wanted && state_.release_ended(64)) count = fit(entry, wanted);
  if (count == 0 && state_.drop_lookup()) count = fit(entry, wanted);
  while (count == 0 && preempt_from(index + 1)) count = fit(entry, wanted);
  return count;
}

// Preempts the last-ranked of running[first…] that is not in flight; false if there is none. Those
// that already have a row in this plan are in flight.
bool Planner::preempt_from(size_t first) {
  while (victim_end_ > first) {
    Entry& victim = *state_.running[--victim_end_];
    if (!victim.running() || victim.in_flight > 0) continue;
    state_.preempt(victim);
    preempted_ = true;
    return true;
  }
  return false;
}

// Frees the blocks that no query from position `computed` on reads. Rows in flight may still read
// them, but they are executed before whatever is written into the blocks from now on.
void Planner::slide_windows(Entry& entry) {
  for (size_t g = 0; g < pool_.groups(); ++g) {
    if (pool_.config().groups[g].window == 0) continue;
    BlockTable& table = entry.tables[g];
    const auto length = static_cast<int32_t>(table.blocks.size());
    const int32_t first = std::min(length, pool_.first_needed(g, entry.computed));
    for (; table.live < first; ++table.live) {
      pool_.group(g).release(table.blocks[table.live]);
      state_.kv_tokens_used -= pool_.block_size();
      state_.kv_tokens_allocated -= pool_.block_size();
      table.blocks[table.live] = kNoBlock;
    }
  }
}

// Plans the newest token, which was sampled or will be; fit() found a block for it.
void Planner::emit_decode(Entry& entry, int32_t token) {
  --decode_left_;
  PlanRow& row = plan_.rows.emplace_back();
  FlightRow& flight = flight_.rows.emplace_back();
  row.sample = flight.sample = true;
  row.token_begin = static_cast<int32_t>(plan_.tokens.size());
  plan_.tokens.push_back(token);
  place(entry, 1, row, flight);
}

// Plans the next `count` known tokens; fit() found blocks for them.
void Planner::emit_chunk(Entry& entry, int32_t count) {
  prefill_tokens_left_ -= count;
  --prefill_rows_left_;
  flight_.prefill_tokens += count;
  const Sequence& sequence = entry.sequence;
  const int32_t begin = entry.computed;
  const int32_t end = begin + count;
  PlanRow& row = prefill_rows_.emplace_back();
  FlightRow& flight = prefill_flight_.emplace_back();
  row.token_begin = static_cast<int32_t>(plan_.tokens.size());
  const std::vector<int32_t>& tokens = entry.tokens();
  plan_.tokens.insert(plan_.tokens.end(), tokens.begin() + begin, tokens.begin() + end);
  if (end == entry.size) {
    row.sample = flight.sample = entry.finish() == FinishReason::kNone;
    flight.last = !row.sample;
    entry.phase = flight.last ? Phase::kEnding : Phase::kDecode;
  }
  if (entry.wants_prompt_logprobs && begin >= entry.reported_to && end <= sequence.prompt_tokens) {
    row.prompt_logprobs = flight.prompt_logprobs = true;
    row.next_token = end < sequence.prompt_tokens ? tokens[end] : -1;
  }
  place(entry, count, row, flight);
  const bool prompt_done = begin < sequence.prompt_tokens && end >= sequence.prompt_tokens;
  if (prompt_done && entry.has_siblings) state_.release_siblings(entry);
}

// What all rows have in common: position, blocks, and the entry's new state.
void Planner::place(Entry& entry, int32_t count, PlanRow& row, FlightRow& flight) {
  row.slot = flight.slot = entry.slot;
  row.position = entry.computed;
  row.count = count;
  row.block_begin = static_cast<int32_t>(plan_.blocks.size());
  entry.computed += count;
  state_.kv_tokens_used += count * static_cast<int64_t>(pool_.groups());
  ++entry.in_flight;
  flight.entry = &entry;
  flight.end = entry.computed;
  if (entry.computed > entry.capacity) take_blocks(entry, row);
  // A row that ends inside the block in which it begins fills none. A block becomes findable when
  // the row that fills it is planned, before it is computed. That is right for rows of later plans,
  // because plans are executed in order, and for other rows of this plan, because a layer writes
  // the KV of all rows before any row reads it. It stays right if the sequence is aborted or
  // preempted meanwhile: the plan is executed all the same. If a world dies with plans in flight,
  // reset_world() forgets all prefixes. What a row ahead fills has no hash yet: see apply().
  if (pool_.config().prefix_cache && (count > 1 || entry.computed == entry.capacity)) {
    state_.publish_filled(entry, row.position);
  }
}

void Planner::take_blocks(Entry& entry, PlanRow& row) {
  row.block_count = pool_.blocks_for(entry.computed - entry.capacity);
  entry.capacity += row.block_count * pool_.block_size();
  state_.kv_tokens_allocated +=
      int64_t{row.block_count} * pool_.block_size() * static_cast<int64_t>(pool_.groups());
  for (size_t g = 0; g < pool_.groups(); ++g) {
    for (int32_t i = 0; i < row.block_count; ++i) {
      const int32_t block = pool_.group(g).take();
      entry.tables[g].blocks.push_back(block);
      plan_.blocks.push_back(block);
    }
  }
}

}  // namespace

bool Scheduler::next(StepPlan& plan) {
  SchedulerState& state = *state_;
  plan.clear();
  if (!can_plan()) return false;
  Flight flight;
  if (!state.spare_rows.empty()) {
    flight.rows = std::move(state.spare_rows.back());
    state.spare_rows.pop_back();
  }
  Planner(state, plan, flight).run();
  if (plan.rows.empty()) {
    state.stalled = true;
    return false;
  }
  plan.epoch = state.epoch;
  plan.step = ++state.steps;
  flight.step = plan.step;
  state.flights.push_back(std::move(flight));
  return true;
}

}  // namespace trireme
