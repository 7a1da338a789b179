#include "runtime/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/scheduler_state.h"

namespace trireme {

void validate(const SchedulerConfig& config) {
  const auto check = [](const char* name, int32_t value, int32_t most) {
    if (value >= 1 && value <= most) return;
    fail(ErrorCode::kInvalidArgument, "{}: {} is not in [1, {}]", name, value, most);
  };
  check("token_budget", config.token_budget, 1 << 20);
  check("max_chunk", config.max_chunk, 1 << 20);
  check("max_rows", config.max_rows, 1 << 16);
  check("max_running", config.max_running, 1 << 16);
  check("max_queue", config.max_queue, 1 << 20);
  check("max_context", config.max_context, INT32_MAX);
  check("steps_in_flight", config.steps_in_flight, 256);
  if (config.look_ahead && config.steps_in_flight < 2) {
    fail(ErrorCode::kInvalidArgument, "steps_in_flight: {}: with look_ahead at least 2",
         config.steps_in_flight);
  }
  if (config.max_lookups != 0) check("max_lookups", config.max_lookups, 1 << 30);
}

int32_t work_shares(const SchedulerConfig& config) {
  return config.look_ahead ? config.steps_in_flight - 1 : config.steps_in_flight;
}

int32_t slot_count(const SchedulerConfig& config) {
  const int32_t prefill = std::min(config.max_chunk, std::max(1, config.token_budget / 8));
  const int64_t rows = std::max(1, std::min(config.max_rows, config.token_budget - prefill));
  return static_cast<int32_t>(std::min<int64_t>(config.max_running, rows * work_shares(config)));
}

int32_t lookup_budget(const SchedulerConfig& config) {
  return config.max_lookups > 0 ? config.max_lookups : 1536 + 3 * config.max_rows;
}

Scheduler::Scheduler(const SchedulerConfig& config, const KvPoolConfig& pool) {
  validate(config);
  state_ = std::make_unique<SchedulerState>(config, pool);
}

Scheduler::~Scheduler() = default;

void Scheduler::prepare(std::span<Sequence> sequences) const {
  const KvCachePool& pool = state_->pool;
  const Sequence* last = nullptr;
  for (Sequence& sequence : sequences) {
    if (sequence.size() > state_->config.max_context) continue;  // add() will refuse it
    const int32_t most = most_soon(sequence, state_->config.max_context);
    sequence.tokens.reserve(most);
    if (!pool.config().prefix_cache) continue;
    std::vector<PrefixHash>& hashes = sequence.prefix_hashes;
    hashes.clear();
    hashes.reserve(pool.blocks_for(most));
    if (last != nullptr && last->prefix_salt == sequence.prefix_salt &&
        last->tokens == sequence.tokens) {
      hashes = last->prefix_hashes;
      continue;
    }
    last = &sequence;
    const int32_t blocks = sequence.size() / pool.block_size();
    PrefixChain chain(pool.hasher(), sequence.prefix_salt, pool.block_size(), std::move(hashes));
    if (blocks > 0) chain.at(blocks - 1, sequence.tokens);
    hashes = std::move(chain).take();
  }
}

bool Scheduler::add(Sequence sequence) {
  SchedulerState& state = *state_;
  validate(sequence, state.config.max_context);
  const int32_t kv_tokens = final_kv_tokens(sequence, state.config.max_context);
  for (size_t g = 0; g < state.pool.groups(); ++g) {
    const int32_t needed = state.pool.blocks_to_finish(g, kv_tokens);
    if (needed <= state.pool.group(g).size()) continue;
    fail(ErrorCode::kInvalidArgument,
         "max_tokens: {} KV positions need {} blocks of KV group {}, which owns {}", kv_tokens,
         needed, g, state.pool.group(g).size());
  }
  if (state.entries.contains(sequence.id)) {
    fail(ErrorCode::kAlreadyExists, "sequence id {} is in use", sequence.id);
  }
  if (sequence.generated() > 0 && sequence.sampling.prompt_logprobs < 0) {
    const FinishReason finish = finish_reason(sequence, state.config.max_context);
    if (finish != FinishReason::kNone) {
      state.pending_events.push_back({.id = sequence.id, .finish = finish});
      return true;
    }
  }
  if (state.queued >= state.config.max_queue) return false;
  if (sequence.prefix_hashes.empty()) prepare({&sequence, 1});
  if (sequence.prefix_hashes.size() > sequence.tokens.size() / state.pool.block_size()) {
    fail(ErrorCode::kInternal, "sequence id {}: {} prefix hashes of {} tokens", sequence.id,
         sequence.prefix_hashes.size(), sequence.tokens.size());
  }
  PrefixChain chain(state.pool.hasher(), sequence.prefix_salt, state.pool.block_size(),
                    std::move(sequence.prefix_hashes));
  auto entry = state.slab.make(std::move(sequence), std::move(chain), state.config.max_context);
  entry->arrival = ++state.arrivals;
  ++state.queued;
  state.park_or_enqueue(*entry);
  state.entries.emplace(entry->id, std::move(entry));
  state.stalled = false;
  return true;
}

void Scheduler::abort(SequenceId id) {
  SchedulerState& state = *state_;
  const auto found = state.entries.find(id);
  if (found == state.entries.end()) return;
  Entry& entry = *found->second;
  entry.aborted = true;
  if (entry.in_flight > 0) return;
  state.pending_events.push_back({.id = id, .finish = FinishReason::kAborted});
  if (entry.phase == Phase::kWaiting) state.dequeue(entry);
  state.retire(entry);
  state.compact();
  state.release_ended();
  state.stalled = false;
}

bool Scheduler::can_plan() const {
  return !state_->stalled && !(state_->running.empty() && state_->waiting.empty()) &&
         static_cast<int32_t>(state_->flights.size()) < state_->config.steps_in_flight;
}

void Scheduler::take_events(std::vector<SequenceEvent>& events) {
  auto& pending = state_->pending_events;
  events.insert(events.end(), pending.begin(), pending.end());
  pending.clear();
}

bool Scheduler::idle() const { return state_->entries.empty() && state_->flights.empty(); }

SchedulerStats Scheduler::stats() const {
  const SchedulerState& state = *state_;
  SchedulerStats stats;
  stats.running = state.running_count - static_cast<int32_t>(state.retired.size());
  stats.waiting = static_cast<int32_t>(state.entries.size()) - stats.running;
  stats.in_flight = static_cast<int32_t>(state.flights.size());
  stats.steps = state.steps;
  stats.preemptions = state.preemptions;
  stats.rows_ahead = state.rows_ahead;
  stats.ghosts = state.ghosts;
  stats.lookups = state.lookups;
  stats.lookups_dropped = state.lookups_dropped;
  stats.kv = state.pool.stats();
  stats.kv_tokens_used = state.kv_tokens_used;
  stats.kv_tokens_allocated = state.kv_tokens_allocated;
  return stats;
}

void Scheduler::reset_world() {
  SchedulerState& state = *state_;
  state.flights.clear();
  const std::vector<Entry*> running = std::move(state.running);
  state.running.clear();
  for (Entry* entry : running) {
    entry->in_flight = 0;
    if (entry->over) {
      state.free_room(*entry);
    } else if (entry->aborted) {
      state.pending_events.push_back({.id = entry->id, .finish = FinishReason::kAborted});
      state.retire(*entry);
    } else {
      state.release_blocks(*entry);
      state.enqueue(*entry);
    }
  }
  state.compact();
  state.drop_lookup();
  state.release_ended(INT64_MAX);
  for (auto& [id, entry] : state.entries) entry->retry_at.clear();
  for (size_t g = 0; g < state.pool.groups(); ++g) state.pool.group(g).forget_prefixes();
  ++state.epoch;
  state.stalled = false;
}

void Scheduler::check_invariants() const {
  const SchedulerState& state = *state_;
  const auto require = [](bool valid, const char* what) {
    if (!valid) fail(ErrorCode::kInternal, "scheduler: {}", what);
  };
  int64_t used = 0;
  int64_t allocated = 0;
  for (size_t g = 0; g < state.pool.groups(); ++g) {
    std::vector<int32_t> expected(state.pool.group(g).size(), 0);
    for (const Entry* entry : state.running) {
      const BlockTable& table = entry->tables[g];
      require(table.blocks.size() == entry->tables[0].blocks.size(), "tables differ in length");
      require(state.pool.blocks_for(entry->computed) == static_cast<int32_t>(table.blocks.size()),
              "a table does not fit its tokens");
      require(
          entry->capacity == static_cast<int32_t>(table.blocks.size()) * state.pool.block_size(),
          "capacity");
      used += entry->computed - int64_t{table.live} * state.pool.block_size();
      allocated += entry->capacity - int64_t{table.live} * state.pool.block_size();
      for (size_t i = table.live; i < table.blocks.size(); ++i) ++expected[table.blocks[i]];
    }
    for (const EndedTable& table : state.ended) {
      if (table.group != g) continue;
      for (size_t i = table.live; i < table.blocks.size(); ++i) ++expected[table.blocks[i]];
    }
    if (state.looking != nullptr && state.pool.config().groups[g].window == 0) {
      const std::vector<int32_t>& held = state.lookup.tables.at(g);
      require(static_cast<int32_t>(held.size()) == state.lookup.walked, "a look-up's blocks");
      for (const int32_t block : held) ++expected[block];
    }
    state.pool.group(g).check(expected);
  }
  require(used == state.kv_tokens_used && allocated == state.kv_tokens_allocated, "kv_tokens");
  require(std::is_sorted(state.running.begin(), state.running.end(), RanksBefore{}),
          "running sequences are not in rank order");
  require(static_cast<int32_t>(state.running.size()) == state.running_count, "running_count");
  require(static_cast<int32_t>(state.free_slots.size()) + state.running_count == state.slots,
          "a slot is lost");
  for (const auto& [id, entry] : state.entries) {
    entry->tokens();
    require(!entry->over, "a sequence is listed after its end");
    require(entry->size == entry->sequence.size() && entry->newest == entry->sequence.tokens.back(),
            "size or newest");
    require(entry->finish() == finish_reason(entry->sequence, state.config.max_context), "finish");
  }
  require(state.looking == nullptr || state.waiting.contains(state.looking), "a stray look-up");
  require(!idle() || state.ended.empty(), "idle, but blocks of ended sequences are held");
  int64_t waiting_tokens = 0;
  for (const Entry* entry : state.waiting) waiting_tokens += entry->size;
  require(waiting_tokens == state.waiting_tokens, "waiting_tokens");
  size_t parked = 0;
  for (const auto& [group, siblings] : state.siblings) parked += siblings.parked.size();
  for (const auto& ghost : state.retired) {
    require(ghost->over && ghost->running() && ghost->in_flight > 0, "a ghost without a row");
  }
  require(parked + state.waiting.size() + state.running.size() ==
              state.entries.size() + state.retired.size(),
          "a sequence is lost");
}

}  // namespace trireme
