#include "runtime/scheduler_state.h"

#include <algorithm>

namespace trireme {

Entry::Entry(Sequence from, PrefixChain of_sequence, int32_t max_context)
    : sequence(std::move(from)), chain(std::move(of_sequence)) {
  const SamplingParams& sampling = sequence.sampling;
  id = sequence.id;
  size = sequence.size();
  newest = sequence.tokens.back();
  max_size = static_cast<int32_t>(
      std::min<int64_t>(max_context, int64_t{sequence.prompt_tokens} + sampling.max_tokens));
  stops_above = static_cast<int32_t>(
      std::min<int64_t>(max_context, int64_t{sequence.prompt_tokens} + sampling.min_tokens));
  std::copy_n(sampling.stop_ids.begin(), std::min(stops.size(), sampling.stop_ids.size()),
              stops.begin());
  many_stops = sampling.stop_ids.size() > stops.size();
  has_siblings = sequence.group != 0;
  wants_prompt_logprobs = sampling.prompt_logprobs >= 0;
}

const std::vector<int32_t>& Entry::tokens() {
  sequence.tokens.insert(sequence.tokens.end(), tail.begin(), tail.begin() + tail_size);
  tail_size = 0;
  return sequence.tokens;
}

int32_t most_soon(const Sequence& sequence, int32_t max_context) {
  constexpr int32_t kAhead = 1024;
  const int32_t size = sequence.size();
  return std::max(size, std::min(final_size(sequence, max_context), size + kAhead));
}

FinishReason Entry::finish() const {
  if (size > stops_above && newest >= 0) {
    bool stop = std::find(stops.begin(), stops.end(), newest) != stops.end();
    if (many_stops && !stop) {
      const std::vector<int32_t>& ids = sequence.sampling.stop_ids;
      stop = std::find(ids.begin(), ids.end(), newest) != ids.end();
    }
    if (stop) return FinishReason::kStop;
  }
  return size >= max_size ? FinishReason::kLength : FinishReason::kNone;
}

EntrySlab::Pointer EntrySlab::make(Sequence sequence, PrefixChain chain, int32_t max_context) {
  if (free_.empty()) {
    Room* chunk = chunks_.emplace_back(std::make_unique_for_overwrite<Room[]>(kChunk)).get();
    for (size_t i = kChunk; i > 0; --i) free_.push_back(chunk + i - 1);
  }
  Entry* entry = new (free_.back()) Entry(std::move(sequence), std::move(chain), max_context);
  free_.pop_back();
  return Pointer(entry, Delete{this});
}

SchedulerState::SchedulerState(const SchedulerConfig& config, const KvPoolConfig& pool_config)
    : config(config), pool(pool_config), slots(slot_count(config)) {
  for (SlotId slot = slots - 1; slot >= 0; --slot) free_slots.push_back(slot);
}

void SchedulerState::release_blocks(Entry& entry) {
  if (!entry.running()) return;
  leave_slot(entry);
  for (size_t g = 0; g < entry.tables.size(); ++g) {
    BlockTable& table = entry.tables[g];
    // The end of a prefix is useless without its beginning, so it is to be evicted first.
    for (auto i = static_cast<int32_t>(table.blocks.size()) - 1; i >= table.live; --i) {
      pool.group(g).release(table.blocks[i]);
    }
    table.blocks.clear();
    table.live = 0;
  }
}

void SchedulerState::leave_slot(Entry& entry) {
  for (const BlockTable& table : entry.tables) {
    const auto length = static_cast<int64_t>(table.blocks.size());
    kv_tokens_used -= entry.computed - int64_t{table.live} * pool.block_size();
    kv_tokens_allocated -= (length - table.live) * pool.block_size();
  }
  entry.computed = 0;
  entry.capacity = 0;
  free_slots.push_back(entry.slot);
  entry.slot = -1;
  --running_count;
}

void SchedulerState::preempt(Entry& entry) {
  release_blocks(entry);
  entry.retry_at.clear();
  enqueue(entry);
  ++preemptions;
}

void SchedulerState::retire(Entry& entry) {
  leave_siblings(entry);
  if (looking == &entry) drop_lookup();
  if (!entry.admitted) --queued;
  const auto found = entries.find(entry.id);
  retired.push_back(std::move(found->second));
  entries.erase(found);
  entry.over = true;
  entry.phase = Phase::kEnding;
  if (entry.in_flight == 0) free_room(entry);
}

void SchedulerState::free_room(Entry& entry) {
  if (!entry.running()) return;
  leave_slot(entry);
  for (size_t g = 0; g < entry.tables.size(); ++g) {
    ended.push_back({g, std::move(entry.tables[g].blocks), entry.tables[g].live});
  }
}

void SchedulerState::compact() {
  std::erase_if(running, [](const Entry* entry) { return !entry->running(); });
  std::erase_if(retired, [](const EntrySlab::Pointer& entry) { return !entry->running(); });
}

void SchedulerState::publish_filled(Entry& entry, int32_t from) {
  const int32_t full = std::min(entry.computed, entry.size) / pool.block_size();
  for (int32_t i = from / pool.block_size(); i < full; ++i) {
    const PrefixHash hash = entry.chain.at(i, entry.tokens());
    for (size_t g = 0; g < pool.groups(); ++g) {
      pool.group(g).publish(entry.tables[g].blocks[i], hash);
    }
  }
}

bool SchedulerState::release_ended(int64_t most) {
  if (ended.empty()) return false;
  for (; !ended.empty() && most > 0; ended.pop_back()) {
    EndedTable& table = ended.back();
    KvGroupBlocks& group = pool.group(table.group);
    const auto length = static_cast<int64_t>(table.blocks.size());
    const int64_t end = std::max<int64_t>(table.live, length - most);
    most -= length - end;
    for (int64_t i = length; i > end; --i) group.release(table.blocks[i - 1]);
    table.blocks.resize(end);
    if (end > table.live) break;
  }
  return true;
}

void SchedulerState::release_ended() {
  release_ended(entries.empty() ? INT64_MAX : 2 * int64_t{lookup_budget(config)});
}

bool SchedulerState::drop_lookup() {
  if (looking == nullptr) return false;
  looking->retry_at.resize(pool.groups());
  for (size_t g = 0; g < pool.groups(); ++g) looking->retry_at[g] -= pool.group(g).available();
  pool.shorten(lookup, 0);
  for (size_t g = 0; g < pool.groups(); ++g) looking->retry_at[g] += pool.group(g).available();
  looking->hurried = true;
  looking = nullptr;
  lookup = {};
  ++lookups_dropped;
  return true;
}

void SchedulerState::enqueue(Entry& entry) {
  entry.phase = Phase::kWaiting;
  waiting.insert(&entry);
  waiting_tokens += entry.size;
}

void SchedulerState::dequeue(Entry& entry) {
  waiting.erase(&entry);
  waiting_tokens -= entry.size;
}

bool SchedulerState::may_hit(const Entry& entry) const {
  return pool.config().prefix_cache && entry.size > pool.block_size() &&
         !(entry.wants_prompt_logprobs && entry.reported_to < entry.sequence.prompt_tokens);
}

void SchedulerState::park_or_enqueue(Entry& entry) {
  if (!entry.has_siblings || !may_hit(entry)) return enqueue(entry);
  Siblings& group = siblings[entry.sequence.group];
  if (group.leader == nullptr) {
    group.leader = &entry;
    return enqueue(entry);
  }
  entry.phase = Phase::kParked;
  group.parked.push_back(&entry);
}

void SchedulerState::release_siblings(Entry& leader) {
  const auto found = siblings.find(leader.sequence.group);
  if (found == siblings.end() || found->second.leader != &leader) return;
  const std::vector<Entry*> parked = std::move(found->second.parked);
  siblings.erase(found);
  for (Entry* entry : parked) enqueue(*entry);
}

void SchedulerState::leave_siblings(Entry& entry) {
  const auto found = siblings.find(entry.sequence.group);
  if (found == siblings.end()) return;
  Siblings& group = found->second;
  if (group.leader != &entry) {
    std::erase(group.parked, &entry);
  } else if (group.parked.empty()) {
    siblings.erase(found);
  } else {
    group.leader = group.parked.front();
    group.parked.erase(group.parked.begin());
    enqueue(*group.leader);
  }
}

}  // namespace trireme
