// Scheduler::next(): one pass over the running sequences in rank order, then admissions.
//
// Blocks are handed out strictly by rank: the first-ranked sequence that is not in flight may take
// the blocks of every other that is not in flight, so it always gets on. Tokens go to decode rows
// first: their number is known before the pass, and prefill gets what they leave.
#include <algorithm>

#include "runtime/scheduler_planner.h"

namespace trireme {
namespace {

// With several steps in flight the prefill work at hand is spread over them, in shares no smaller
// than this: smaller chunks would read the weights more often than they save time.
constexpr int64_t kSmallestShare = 64;

}  // namespace

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
  flight_.decode_rows = static_cast<int32_t>(flight_.rows.size());
  flight_.rows.insert(flight_.rows.end(), prefill_flight_.begin(), prefill_flight_.end());
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
  const int32_t steps = shares_;
  decode_left_ = std::min(decode_share(decoding, ready), config.max_rows);
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

// Each plan in flight gets its share of the decode rows, so that every stage has work: as many as the
// others, and one more as long as there are fewer such plans than rows that remain.
int32_t Planner::decode_share(int32_t decoding, int32_t ready) const {
  const int32_t share = decoding / shares_;
  const auto others = std::min(state_.flights.size(), static_cast<size_t>(shares_ - 1));
  const auto larger = std::count_if(state_.flights.end() - static_cast<std::ptrdiff_t>(others),
                                    state_.flights.end(), [share](const Flight& flight) {
                                      return flight.decode_rows > share;
                                    });
  return std::min(ready, larger < decoding % shares_ ? share + 1 : share);
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

void Planner::promise(const Entry& entry) {
  if (entry.phase != Phase::kPrefill) return;
  for (size_t g = 0; g < pool_.groups(); ++g) {
    const BlockTable& table = entry.tables[g];
    promised_[g] +=
        pool_.blocks_to_take(g, entry.size, static_cast<int32_t>(table.blocks.size()), table.live);
  }
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
  entry.last_step = static_cast<uint16_t>(state_.steps + 1);
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
